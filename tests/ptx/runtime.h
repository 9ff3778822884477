/* What a translated kernel needs: the thread it runs, access to memory, arithmetic with the rules of PTX. */
#include <stdint.h>
typedef uint8_t u8;
typedef int8_t i8;
typedef uint16_t u16;
typedef int16_t i16;
typedef uint32_t u32;
typedef int32_t i32;
typedef uint64_t u64;
typedef int64_t i64;
typedef __int128 i128;
typedef unsigned __int128 u128;

/* Why a thread handed control back. */
enum { RUNNING, AT_BARRIER, AT_SHUFFLE, AT_VOTE, AT_WARP_SYNC, AT_GRID_SYNC, YIELDED, DONE };
/* What is done to memory: a space, or'ed with kinds of access. */
enum { GENERIC, GLOBAL, SHARED, LOCAL, SPACE = 3, WRITE = 4, ATOMIC = 8 };
/* Faults; the names are in emulator.py. */
enum { NO_FAULT, BOUNDS, ALIGNMENT, UNINITIALISED, RACE_WRITE_WRITE, RACE_READ_AFTER_WRITE, RACE_WRITE_AFTER_READ,
       DEADLOCK, ENDLESS, WARP_MASK, INACTIVE_LANE, DIVERGENCE, TRAP, NO_MEMORY };
enum { UP, DOWN, BUTTERFLY, INDEX };                                  /* shuffles */
enum { BALLOT, ANY, ALL, UNIFORM, COUNT };                            /* votes and reducing barriers */
enum { NEAREST, TO_ZERO, TO_MINUS, TO_PLUS };                         /* directions of rounding */

#define SHARED_WINDOW (1ull << 62)                                    /* where generic addresses see these spaces */
#define LOCAL_WINDOW (1ull << 61)

typedef struct Block Block;
typedef struct Launch Launch;

typedef struct {
  i32 state, resume, line;                                            /* where to go on; line of the PTX */
  u32 linear, lane, warp, tid[3];                                     /* place in the block */
  u32 mask, value, source, clamp, mode, result;                       /* what the warp or the barrier exchanges */
  u8 in_range;
  Block *block;
  Launch *launch;
  void *registers;
  u8 *local;
} Thread;

struct Block {
  u32 index, epoch, ctaid[3], alive;
  u32 *warp_epochs;
  u8 *shared, *initialised;
  struct Cell *cells;
  Thread *threads;
};

struct Launch {
  u32 nctaid[3], ntid[3];
  u32 dynamic_shared, ranges, check_races, order, cooperative;
  u64 seed, fuel;
  const u64 *range;                                                   /* ranges pairs: first byte, byte behind */
  const u8 *parameters;
  /* what follows is the scheduler's */
  u32 grid_epoch, shared_size, threads, blocks, local_size;
  struct Cell **cells;
};

typedef struct {
  i32 (*run)(Thread *, const u8 *);
  u64 registers_size, local_size, shared_size, cooperative, statics, statics_size;
} Kernel;

void *ptx_reach(Thread *, u64 address, u32 size, u32 how, i32 line);
void ptx_fault(Thread *, i32 code, u64 address, i32 line, i64 other) __attribute__((noreturn));
float ptx_round_f32(int operation, int mode, float, float, float);    /* operation: '+', '*', 'f', '/', 's' */
double ptx_round_f64(int operation, int mode, double, double, double);

#define AT(type, pointer) (*(type *)(pointer))
#define REACH(type, space, address, line) AT(type, ptx_reach(t, address, sizeof(type), space, line))
static inline float F(u32 x) { union { u32 u; float f; } v = {x}; return v.f; }
static inline u32 UF(float f) { union { float f; u32 u; } v = {f}; return v.u; }
static inline double D(u64 x) { union { u64 u; double f; } v = {x}; return v.f; }
static inline u64 UD(double f) { union { double f; u64 u; } v = {f}; return v.u; }
#define FTZ(x) ({ float x_ = (x); __builtin_fabsf(x_) < 0x1p-126f ? __builtin_copysignf(0, x_) : x_; })
#define FTZD(x) ({ double x_ = (x); __builtin_fabs(x_) < 0x1p-1022 ? __builtin_copysign(0, x_) : x_; })
#define SATURATE(x) ({ __auto_type x_ = (x); x_ > 0 ? (x_ < 1 ? x_ : 1) : 0; })
/* a NaN loses against a number, and -0 is less than +0 */
#define MIN(a, b) ({ __auto_type a_ = (a); __auto_type b_ = (b); \
  a_ != a_ ? b_ : b_ != b_ ? a_ : a_ < b_ || (a_ == b_ && __builtin_signbit(a_)) ? a_ : b_; })
#define MAX(a, b) ({ __auto_type a_ = (a); __auto_type b_ = (b); \
  a_ != a_ ? b_ : b_ != b_ ? a_ : a_ > b_ || (a_ == b_ && !__builtin_signbit(a_)) ? a_ : b_; })
#define UNORDERED(a, b) __builtin_isunordered(a, b)
/* float to integer: clamped, NaN becomes 0; the limits are exact in float64, `high` is the first value too large */
#define TO_INT(type, x, low, high, least, most) \
  ({ double x_ = (x); x_ != x_ ? 0 : x_ < low ? least : x_ >= high ? most : (type)x_; })
#define CLAMP(x, low, high) ({ __auto_type x_ = (x); x_ < (low) ? (low) : x_ > (high) ? (high) : x_; })
/* division never raises a signal; by zero the result has all bits set */
#define DIVIDE(type, a, b) ({ type a_ = (a), b_ = (b); b_ == 0 ? (type)-1 : b_ == (type)-1 && (type)-1 < 0 ? \
  (type)(0 - (u64)a_) : a_ / b_; })
#define REMAINDER(type, a, b) ({ type a_ = (a), b_ = (b); b_ == 0 ? a_ : b_ == (type)-1 && (type)-1 < 0 ? 0 : a_ % b_; })
static inline u32 byte_permute(u32 low, u32 high, u32 selectors) {
  u64 bytes = (u64)high << 32 | low;
  u32 result = 0;
  for (int i = 0; i < 4; i++) {
    u32 selector = selectors >> 4 * i & 15, byte = bytes >> 8 * (selector & 7) & 255;
    result |= (selector & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;
  }
  return result;
}
static inline u64 reverse_bits(u64 x, int bits) {
  u64 result = 0;
  for (int i = 0; i < bits; i++) result |= (x >> i & 1) << (bits - 1 - i);
  return result;
}
static inline u64 extract_bits(u64 x, u32 start, u32 length, int bits, int is_signed) {
  start &= 255, length &= 255;
  if (!length) return 0;
  u32 top = start + length - 1 < bits - 1u ? start + length - 1 : bits - 1;
  u64 sign = is_signed && x >> top & 1 ? ~0ull : 0, field = start >= (u32)bits ? 0 : x >> start;
  u64 mask = length >= 64 ? ~0ull : (1ull << length) - 1;
  if (start + length > (u32)bits) mask = start >= (u32)bits ? 0 : (1ull << (bits - start)) - 1;
  return (field & mask) | (sign & ~mask);
}
static inline u64 insert_bits(u64 field, u64 into, u32 start, u32 length, int bits) {
  start &= 255, length &= 255;
  if (start >= (u32)bits || !length) return into;
  u64 mask = (length >= 64 ? ~0ull : (1ull << length) - 1) << start;
  return (field << start & mask) | (into & ~mask);
}
static inline u32 find_highest(u64 x, int bits, int shift_amount) {
  x &= bits == 64 ? ~0ull : (1ull << bits) - 1;
  if (!x) return 0xffffffffu;
  u32 place = 63 - __builtin_clzll(x);
  return shift_amount ? bits - 1 - place : place;
}
