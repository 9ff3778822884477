"""dynjit: neural networks whose structure changes with every example, with DyNet's Python API.

    import dynjit as dy
"""

from dynjit import dynet
from dynjit.dynet import *  # noqa: F403

from dynjit.initializers import *  # noqa: F403
from dynjit.parameters import LookupParameters, Model, ParameterCollection, Parameters
from dynjit.rnn import *  # noqa: F403
from dynjit.trainers import *  # noqa: F403

globals().update(dynet.public_functions())
dynet.connect()
