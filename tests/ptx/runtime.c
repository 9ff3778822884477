/* Runs a translated kernel: schedules its threads, guards its memory, finds its races. */
#include <fenv.h>
#include <math.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include "runtime.h"

/* ---- faults ---- */

typedef struct { i64 code, line, block, thread, other; u64 address; } Fault;
static Fault failure;
static jmp_buf on_fault;

void ptx_fault(Thread *t, i32 code, u64 address, i32 line, i64 other) {
  failure = (Fault){code, line, t->block->index, t->linear, other, address};
  longjmp(on_fault, 1);
}

/* ---- races: who touched a word last, and whether a barrier lies between ---- */

enum { NOBODY = 0, MANY = 0xffffffffu };
typedef struct { u32 thread, block, warp, grid_epoch, block_epoch, warp_epoch, is_atomic; } Access;
typedef struct Cell { Access written, read; } Cell;                   /* of one word of four bytes */

static u32 number(const Thread *t) { return t->block->index * t->launch->threads + t->linear + 1; }

static int is_unordered(const Access *past, const Thread *t) {
  if (past->thread == NOBODY || past->thread == number(t) || past->grid_epoch != t->launch->grid_epoch) return 0;
  if (past->block != t->block->index) return 1;
  if (past->block_epoch != t->block->epoch) return 0;
  return past->warp != t->warp || past->warp_epoch == t->block->warp_epochs[t->warp];
}

static void note(Access *past, const Thread *t, u32 is_atomic) {
  Access now = {number(t), t->block->index, t->warp, t->launch->grid_epoch, t->block->epoch,
                t->block->warp_epochs[t->warp], is_atomic};
  if (is_unordered(past, t)) {                                        /* both count from now on */
    now.thread = MANY;
    if (past->block != now.block) now.block = MANY;
    if (past->warp != now.warp) now.warp = MANY;
  }
  *past = now;
}

static void check_cell(Cell *cell, Thread *t, u64 address, u32 how, i32 line) {
  u32 is_atomic = how & ATOMIC;
  if (is_unordered(&cell->written, t) && !(is_atomic && cell->written.is_atomic))
    ptx_fault(t, how & WRITE ? RACE_WRITE_WRITE : RACE_READ_AFTER_WRITE, address, line, (i64)cell->written.thread - 1);
  if (!(how & WRITE)) {
    if (!is_atomic) note(&cell->read, t, 0);
    return;
  }
  if (is_unordered(&cell->read, t))
    ptx_fault(t, RACE_WRITE_AFTER_READ, address, line, (i64)cell->read.thread - 1);
  note(&cell->written, t, is_atomic);
}

static void check_cells(Cell *cells, Thread *t, u64 offset, u32 size, u64 address, u32 how, i32 line) {
  for (u64 word = offset / 4; word <= (offset + size - 1) / 4; word++) check_cell(cells + word, t, address, how, line);
}

/* ---- memory ---- */

static void *reach_shared(Thread *t, u64 offset, u32 size, u32 how, i32 line) {
  Block *block = t->block;
  if (offset >= t->launch->shared_size || size > t->launch->shared_size - offset) ptx_fault(t, BOUNDS, offset, line, size);
  if (how & WRITE) memset(block->initialised + offset, 1, size);
  else if (memchr(block->initialised + offset, 0, size)) ptx_fault(t, UNINITIALISED, offset, line, size);
  if (t->launch->check_races) check_cells(block->cells, t, offset, size, offset, how, line);
  return block->shared + offset;
}

static void *reach_global(Thread *t, u64 address, u32 size, u32 how, i32 line) {
  Launch *launch = t->launch;
  u32 low = 0, high = launch->ranges;                                 /* the last range that starts at or before it */
  while (high - low > 1) {
    u32 middle = (low + high) / 2;
    if (launch->range[2 * middle] <= address) low = middle;
    else high = middle;
  }
  if (!launch->ranges || address < launch->range[2 * low] || address + size > launch->range[2 * low + 1])
    ptx_fault(t, BOUNDS, address, line, size);
  if (launch->check_races) check_cells(launch->cells[low], t, address - (launch->range[2 * low] & ~3ull), size, address, how, line);
  return (void *)address;
}

static void *reach_local(Thread *t, u64 offset, u32 size, i32 line) {
  if (offset + size > t->launch->local_size) ptx_fault(t, BOUNDS, offset, line, size);
  return t->local + offset;
}

void *ptx_reach(Thread *t, u64 address, u32 size, u32 how, i32 line) {
  if (address & (size - 1)) ptx_fault(t, ALIGNMENT, address, line, size);
  switch (how & SPACE) {
    case SHARED: return reach_shared(t, address, size, how, line);
    case LOCAL: return reach_local(t, address, size, line);
    case GENERIC:
      if (address >= SHARED_WINDOW) return reach_shared(t, address - SHARED_WINDOW, size, how, line);
      if (address >= LOCAL_WINDOW) return reach_local(t, address - LOCAL_WINDOW, size, line);
  }
  return reach_global(t, address, size, how, line);
}

/* ---- arithmetic with a direction of rounding ---- */

static const int directions[] = {FE_TONEAREST, FE_TOWARDZERO, FE_DOWNWARD, FE_UPWARD};
#define ROUNDED(type, fma, sqrt) \
  volatile type x = a, y = b, z = c, r; \
  fesetround(directions[mode]); \
  r = operation == '+' ? x + y : operation == '*' ? x * y : operation == '/' ? x / y : operation == 'f' ? fma(x, y, z) : sqrt(x); \
  fesetround(FE_TONEAREST); \
  return r;
float ptx_round_f32(int operation, int mode, float a, float b, float c) { ROUNDED(float, fmaf, sqrtf) }
double ptx_round_f64(int operation, int mode, double a, double b, double c) { ROUNDED(double, fma, sqrt) }

/* ---- the scheduler ---- */

static u64 random_state;
static u32 below(u32 limit) {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return random_state % limit;
}

enum { FORWARD, REVERSE, RANDOM };
static void permute(u32 *places, u32 count, u32 order) {
  for (u32 i = 0; i < count; i++) places[i] = order == REVERSE ? count - 1 - i : i;
  if (order == RANDOM)
    for (u32 i = count; i > 1; i--) {
      u32 other = below(i), kept = places[i - 1];
      places[i - 1] = places[other], places[other] = kept;
    }
}

static u32 source_lane(const Thread *t, int *in_range) {
  u32 lane = t->lane, segment = t->clamp >> 8 & 31, clamp = t->clamp & 31, by = t->source & 31;
  i32 last = (lane & segment) | (clamp & ~segment), from;
  switch (t->mode) {
    case UP: from = (i32)lane - (i32)by; *in_range = from >= last; break;
    case DOWN: from = lane + by; *in_range = from <= last; break;
    case BUTTERFLY: from = lane ^ by; *in_range = from <= last; break;
    default: from = (lane & segment) | (by & ~segment); *in_range = from <= last;
  }
  return *in_range ? (u32)from : lane;
}

static u32 vote(u32 mode, u32 yes, u32 all) {
  switch (mode) {
    case BALLOT: return yes;
    case ANY: return yes != 0;
    case ALL: return yes == all;
    default: return yes == all || yes == 0;
  }
}

/* Lets the threads of a warp go on if all that the mask names wait at the same instruction. */
static int release_warp(Block *block, u32 first, u32 count) {
  Thread *warp = block->threads + first, *leader = 0;
  u32 waiting = 0, alive = 0, yes = 0;
  for (u32 lane = 0; lane < count; lane++) {
    Thread *t = warp + lane;
    if (t->state != DONE) alive |= 1u << lane;
    if (t->state != AT_SHUFFLE && t->state != AT_VOTE && t->state != AT_WARP_SYNC) continue;
    if (!leader) leader = t;
    if (t->line != leader->line) continue;
    waiting |= 1u << lane;
    if (t->value) yes |= 1u << lane;
  }
  if (!leader || (leader->mask & alive & ~waiting)) return 0;
  for (u32 lane = 0; lane < count; lane++) {
    Thread *t = warp + lane;
    if (!(waiting >> lane & 1)) continue;
    if (t->mask != leader->mask || !(t->mask >> lane & 1)) ptx_fault(t, WARP_MASK, 0, t->line, t->mask);
    if (t->state == AT_SHUFFLE) {
      int in_range;
      u32 from = source_lane(t, &in_range);
      if (!(waiting >> from & 1)) ptx_fault(t, INACTIVE_LANE, 0, t->line, from);
      t->result = warp[from].value, t->in_range = in_range;
    } else if (t->state == AT_VOTE) t->result = vote(t->mode, yes, waiting);
  }
  for (u32 lane = 0; lane < count; lane++)
    if (waiting >> lane & 1) warp[lane].state = RUNNING;
  if (waiting == alive) block->warp_epochs[first / 32]++;             /* part of a warp orders nothing for the rest */
  return 1;
}

static int release_barrier(Block *block, u32 threads) {
  u32 waiting = 0, yes = 0;
  Thread *leader = 0;
  for (u32 i = 0; i < threads; i++) {
    Thread *t = block->threads + i;
    if (t->state != AT_BARRIER) continue;
    if (!leader) leader = t;
    waiting++, yes += t->value != 0;
  }
  if (!waiting || waiting != block->alive) return 0;
  for (u32 i = 0; i < threads; i++) {
    Thread *t = block->threads + i;
    if (t->state != AT_BARRIER) continue;
    if (t->line != leader->line) ptx_fault(t, DIVERGENCE, 0, t->line, leader->line);
    t->state = RUNNING, t->result = t->mode == COUNT ? yes : t->mode == ANY ? yes != 0 : yes == waiting;
  }
  block->epoch++;
  return 1;
}

static int release_grid(Launch *launch, Block *blocks, u32 count) {
  for (u32 b = 0; b < count; b++)
    for (u32 i = 0; i < launch->threads; i++)
      if (blocks[b].threads[i].state != AT_GRID_SYNC && blocks[b].threads[i].state != DONE) return 0;
  for (u32 b = 0; b < count; b++) {
    for (u32 i = 0; i < launch->threads; i++)
      if (blocks[b].threads[i].state == AT_GRID_SYNC) blocks[b].threads[i].state = RUNNING;
    blocks[b].epoch++;
  }
  launch->grid_epoch++;
  return 1;
}

/* Runs every thread of a block that can run up to its next waiting point; whether anything moved. */
static int run_block(const Kernel *kernel, Launch *launch, Block *block, u32 *places) {
  int moved = 0;
  u32 threads = launch->threads, waits_for_warp = 0;
  permute(places, threads, launch->order);
  for (u32 i = 0; i < threads; i++) {
    Thread *t = block->threads + places[i];
    if (t->state != RUNNING && t->state != YIELDED) continue;
    t->state = kernel->run(t, launch->parameters);
    block->alive -= t->state == DONE;
    waits_for_warp |= t->state == AT_SHUFFLE || t->state == AT_VOTE || t->state == AT_WARP_SYNC;
    moved = 1;
  }
  if (waits_for_warp || !moved)
    for (u32 first = 0; first < threads; first += 32)
      moved |= release_warp(block, first, threads - first < 32 ? threads - first : 32);
  return moved | release_barrier(block, threads);
}

static void start_block(const Kernel *kernel, Launch *launch, Block *block, u32 index) {
  const u32 *grid = launch->nctaid, *size = launch->ntid;
  block->index = index, block->epoch = 1, block->alive = launch->threads;
  block->ctaid[0] = index % grid[0], block->ctaid[1] = index / grid[0] % grid[1], block->ctaid[2] = index / grid[0] / grid[1];
  memset(block->warp_epochs, 0, (launch->threads / 32 + 1) * sizeof(u32));
  memset(block->shared, 0xff, launch->shared_size);
  memset(block->initialised, 0, launch->shared_size);
  memset(block->cells, 0, (launch->shared_size / 4 + 1) * sizeof(Cell));
  for (u32 i = 0; i < launch->threads; i++) {
    Thread *t = block->threads + i;
    *t = (Thread){.linear = i, .lane = i % 32, .warp = i / 32, .block = block, .launch = launch, .registers = t->registers,
                  .local = t->local, .tid = {i % size[0], i / size[0] % size[1], i / size[0] / size[1]}};
    memset(t->local, 0xff, kernel->local_size);
  }
}

static void *reserve(void ***kept, u64 bytes) {                       /* zeros, freed together at the end */
  void **memory = calloc(1, bytes + 64);
  if (!memory) {
    failure = (Fault){.code = NO_MEMORY, .line = 1};
    longjmp(on_fault, 1);
  }
  *memory = *kept, *kept = memory;
  return (char *)memory + 32;
}

static void run_all(const Kernel *kernel, Launch *launch, void ***kept) {
  u32 resident = launch->cooperative ? launch->blocks : 1;
  Block *blocks = reserve(kept, resident * sizeof(Block));
  u32 *places = reserve(kept, launch->threads * sizeof(u32)), *starts = reserve(kept, launch->blocks * sizeof(u32));
  launch->cells = reserve(kept, launch->ranges * sizeof(Cell *));
  if (launch->check_races)
    for (u32 i = 0; i < launch->ranges; i++)
      launch->cells[i] = reserve(kept, ((launch->range[2 * i + 1] - launch->range[2 * i]) / 4 + 2) * sizeof(Cell));
  for (u32 b = 0; b < resident; b++) {
    blocks[b].warp_epochs = reserve(kept, (launch->threads / 32 + 1) * sizeof(u32));
    blocks[b].shared = reserve(kept, launch->shared_size), blocks[b].initialised = reserve(kept, launch->shared_size);
    blocks[b].cells = reserve(kept, (launch->shared_size / 4 + 1) * sizeof(Cell));
    blocks[b].threads = reserve(kept, launch->threads * sizeof(Thread));
    for (u32 i = 0; i < launch->threads; i++) {
      blocks[b].threads[i].registers = reserve(kept, kernel->registers_size);
      blocks[b].threads[i].local = reserve(kept, kernel->local_size);
    }
  }
  permute(starts, launch->blocks, launch->order);
  for (u32 first = 0; first < launch->blocks; first += resident) {
    for (u32 b = 0; b < resident; b++) start_block(kernel, launch, blocks + b, starts[first + b]);
    for (u32 alive = 1; alive;) {
      int moved = alive = 0;
      for (u32 b = 0; b < resident; b++)
        if (blocks[b].alive) moved |= run_block(kernel, launch, blocks + b, places);
      for (u32 b = 0; b < resident; b++) alive += blocks[b].alive;
      if (!alive || moved || release_grid(launch, blocks, resident)) continue;
      for (u32 b = 0; b < resident; b++)
        for (u32 i = 0; i < launch->threads; i++)
          if (blocks[b].threads[i].state != DONE) ptx_fault(blocks[b].threads + i, DEADLOCK, 0, blocks[b].threads[i].line, 0);
    }
  }
}

i32 ptx_launch(const Kernel *kernel, Launch *launch, Fault *fault) {
  void **kept = 0;
  launch->threads = launch->ntid[0] * launch->ntid[1] * launch->ntid[2];
  launch->blocks = launch->nctaid[0] * launch->nctaid[1] * launch->nctaid[2];
  launch->shared_size = kernel->shared_size + launch->dynamic_shared;
  launch->local_size = kernel->local_size, launch->grid_epoch = 1;
  launch->cooperative |= kernel->cooperative;
  random_state = launch->seed * 2 + 88172645463325253ull;
  failure = (Fault){0};
  if (!setjmp(on_fault)) run_all(kernel, launch, &kept);
  while (*(void *volatile *)&kept) {
    void **next = *kept;
    free(kept);
    kept = next;
  }
  *fault = failure;
  return failure.code;
}
