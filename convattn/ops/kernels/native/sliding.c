/* Sliding-window attention with vector instructions, forward and backward.

   B batch, N heads of d channels, H W size of the map, K window, s stride, r dilation.

       l_ij = scale q_i . (k_j - p_j),  P_i = softmax(l_i),  y_i = sum_j P_ij v_j
       dl_ij = P_ij (dy_i . v_j - sum_j P_ij dy_i . v_j)
       dq_i = scale sum_j dl_ij (k_j - p_j),  dk_j = scale sum_i dl_ij q_i,  dv_j = sum_i P_ij dy_i

   One task is a head of an image, or a band of rows of a head. Its pixels are copied to rows of
   [channel][column], so that the lanes of a vector are neighbouring queries. The keys of these
   queries at one column of the window are then a vector too. The vector of the next column starts r
   columns further. With a stride, the columns of keys are stored in s phases of every s-th column.
   One band is copied at a time, and no sum is across lanes. */

#include "products.h"

#define MAX_WINDOW 32

typedef struct {
    int64_t batch, heads, width; /* B, N, d */
    int64_t height, breadth;     /* of keys: H, W */
    int64_t rows, columns;       /* of queries */
    int64_t window, stride, dilation;
    int64_t band; /* rows of queries */
    int64_t threads;
    double scale;
} task_t;

/* Sizes and offsets that are computed from a task. */
typedef struct {
    int64_t group;         /* rows of queries that are computed together */
    int64_t reach;         /* pixels of a window on one side of its centre */
    int64_t places;        /* K^2 */
    int64_t lanes;         /* queries of a row, in whole vectors */
    int64_t margin;        /* zeros before and after the queries of a row */
    int64_t query_columns; /* lanes and both margins */
    int64_t phases;        /* number of phases that windows contain */
    int64_t phase;         /* columns of a phase */
    int64_t key_columns;   /* columns of all phases */
    int64_t key_rows;      /* rows of keys in the windows of a band */
    int64_t key_stride;    /* floats of a row of keys; then of queries, of logits */
    int64_t query_stride;
    int64_t logit_stride;
    int64_t shift[MAX_WINDOW]; /* offset of the first key at a column of the window */
    int64_t place[MAX_WINDOW]; /* offset of the logits at a column of the window */
} plan_t;

/* The parts of a thread's workspace. The backward pass stores the logits of a band, the forward
   pass stores the logits of a group. */
typedef struct {
    float *keys, *values;               /* [row][channel][phase][column] */
    float *queries, *grads;             /* [row][channel][column]; grads: dy */
    float *weights, *grad_logits;       /* [row][place][column]: P and dl */
    float *sums;                        /* [row of a group][channel][column] */
    int32_t *key_column, *query_column; /* the map's column for each column, or -1 */
} parts_t;

static plan_t plan(const task_t *task) {
    plan_t p;
    int64_t far = task->dilation * (task->window - 1) / task->stride;
    p.group = task->dilation == 1 ? ROWS : 1; /* with a dilation, neighbouring rows share no key */
    p.reach = task->dilation * (task->window / 2);
    p.places = task->window * task->window;
    p.lanes = round_up(task->columns, LANES);
    p.margin = round_up(far, LANES);
    p.query_columns = p.lanes + 2 * p.margin;
    p.phases = task->stride < 2 * p.reach + 1 ? task->stride : 2 * p.reach + 1;
    p.phase = round_up(p.lanes + far, LANES);
    p.key_columns = p.phases * p.phase;
    p.key_rows = task->stride * (task->band - 1) + 2 * p.reach + 1;
    p.key_stride = task->width * p.key_columns;
    p.query_stride = task->width * p.query_columns;
    p.logit_stride = p.places * p.query_columns;
    for (int64_t x = 0; x < task->window; x++) {
        int64_t column = task->dilation * x;
        p.shift[x] = column % task->stride * p.phase + column / task->stride;
        p.place[x] = x * p.query_columns;
    }
    return p;
}

/* Divide a thread's workspace into parts; return the size of the workspace in floats. */
static int64_t divide(const task_t *task, const plan_t *p, int backward, float *at,
                      parts_t *parts) {
    float *start = at;
    int64_t kept = backward ? task->band : ROWS;
    int64_t wide = backward && p->key_columns > p->lanes ? p->key_columns : p->lanes;
    parts->keys = at, at += p->key_rows * p->key_stride;
    parts->values = at, at += p->key_rows * p->key_stride;
    parts->queries = at, at += task->band * p->query_stride;
    parts->grads = at, at += backward ? task->band * p->query_stride : 0;
    parts->weights = at, at += kept * p->logit_stride;
    parts->grad_logits = at, at += backward ? kept * p->logit_stride : 0;
    parts->sums = at, at += ROWS * task->width * wide;
    parts->key_column = (int32_t *)at, at += p->key_columns;
    parts->query_column = (int32_t *)at, at += p->lanes;
    return round_up(at - start, LANES);
}

/* Return the size of the workspace of all threads in floats. */
int64_t sliding_workspace(const task_t *task, int64_t backward) {
    plan_t p = plan(task);
    parts_t parts;
    return LANES + task->threads * divide(task, &p, backward, NULL, &parts);
}

/* ---- reading and writing maps ---- */

/* Return the index of the pixel of a mirrored map at x, at any distance from the map. */
static int64_t mirror(int64_t x, int64_t size) {
    if (size == 1) return 0;
    int64_t period = 2 * (size - 1);
    x = (x % period + period) % period;
    return x < size ? x : period - x;
}

static void name_columns(const task_t *task, const plan_t *p, parts_t *parts) {
    int64_t last = task->stride * (task->columns - 1) + 2 * p->reach;
    for (int64_t i = 0; i < p->key_columns; i++) {
        int64_t x = task->stride * (i % p->phase) + i / p->phase;
        parts->key_column[i] = x > last ? -1 : mirror(x - p->reach, task->breadth);
    }
    for (int64_t i = 0; i < p->lanes; i++) parts->query_column[i] = i < task->columns ? i : -1;
}

static int64_t place_of(const map_t *map, int64_t image, int64_t channel, int64_t row) {
    return image * map->image + channel * map->channel + row * map->row;
}

/* Copy a row: to[channel][i] = (map - origin)[channel, column[i]] * scale, or 0 for column -1. The
   next row in memory is prefetched: a head reads small parts of a map, and the processor does not
   predict the next part. */
static void cut(float *to, int64_t step, const int32_t *column, int64_t count, int64_t width,
                const map_t *map, int64_t at, const map_t *origin, int64_t from, float scale) {
    for (int64_t c = 0; c < width; c += LANES) {
        int64_t many = width - c < LANES ? width - c : LANES;
        for (int64_t i = 0; i < count; i += LANES) {
            vec t[LANES];
            UNROLL for (int lane = 0; lane < LANES; lane++) {
                int64_t x = column[i + lane], pixel = at + c * map->channel + x * map->column;
                t[lane] = all(0);
                if (x < 0) continue;
                if (map->channel == 1) {
                    t[lane] = read(map, pixel, many);
                    prefetch(map, pixel + map->row);
                } else {
                    for (int64_t k = 0; k < many; k++)
                        t[lane][k] = read_one(map, pixel + k * map->channel);
                }
                if (origin->data) t[lane] -= read(origin, from + c + x * origin->column, many);
            }
            transpose(t);
            UNROLL for (int k = 0; k < LANES; k++)
                if (k < many) store(to + (c + k) * step + i, t[k] * scale);
        }
    }
}

/* Write a row of sums to a map with contiguous channels, or add the row to the map. */
static void paste(const float *from, int64_t step, const int32_t *column, int64_t count,
                  int64_t width, const map_t *map, int64_t at, int add, float scale) {
    for (int64_t c = 0; c < width; c += LANES) {
        int64_t many = width - c < LANES ? width - c : LANES;
        for (int64_t i = 0; i < count; i += LANES) {
            vec t[LANES];
            UNROLL for (int k = 0; k < LANES; k++)
                t[k] = k < many ? load(from + (c + k) * step + i) * scale : all(0);
            transpose(t);
            UNROLL for (int lane = 0; lane < LANES; lane++) {
                int64_t x = column[i + lane], pixel = at + c + x * map->column;
                if (x < 0) continue;
                if (add) t[lane] += read(map, pixel, many);
                write(map, pixel, many, t[lane]);
            }
        }
    }
}

/* ---- a band of a head of an image ---- */

typedef struct {
    const task_t *task;
    const plan_t *plan;
    parts_t parts;
    int64_t image, channel, top, rows; /* channel: first channel of the head */
} band_t;

static void cut_queries(const band_t *b, float *to, const map_t *map, float scale) {
    const plan_t *p = b->plan;
    map_t none = {0};
    for (int64_t y = 0; y < b->rows; y++)
        cut(to + y * p->query_stride + p->margin, p->query_columns, b->parts.query_column, p->lanes,
            b->task->width, map, place_of(map, b->image, b->channel, b->top + y), &none, 0, scale);
}

static void cut_keys(const band_t *b, float *to, const map_t *map, const map_t *origin) {
    const plan_t *p = b->plan;
    int64_t first = b->task->stride * b->top - p->reach;
    int64_t rows = b->task->stride * (b->rows - 1) + 2 * p->reach + 1;
    for (int64_t y = 0; y < rows; y++) {
        int64_t row = mirror(first + y, b->task->height);
        cut(to + y * p->key_stride, p->key_columns, b->parts.key_column, p->key_columns,
            b->task->width, map, place_of(map, b->image, b->channel, row), origin,
            place_of(origin, b->image, 0, row), 1);
    }
}

/* The rows [first, end) of a group of `rows` rows of queries whose windows contain a row of keys.
   The row of keys is `row` rows below the top of the first window, and the top of each next window
   is `step` rows lower. */
static void rows_of(int64_t row, int64_t step, int64_t window, int64_t rows, term_t *term) {
    term->first = row < window ? 0 : (row - window) / step + 1;
    term->end = row / step + 1 < rows ? row / step + 1 : rows;
}

/* Logits, or gradients of the weights, of a group: out[row][place] = query . key. */
static void score_group(const band_t *b, const float *queries, const float *keys, float *out,
                        int64_t y, int64_t rows) {
    const task_t *task = b->task;
    const plan_t *p = b->plan;
    int64_t line = task->window * p->query_columns; /* logits of one window row */
    for (int64_t row = 0; row < task->stride * (rows - 1) + task->window; row++) {
        term_t t;
        rows_of(row, task->stride, task->window, rows, &t);
        if (t.first >= t.end) continue;
        const float *key = keys + (task->stride * y + task->dilation * row) * p->key_stride;
        float *to = out + t.first * p->logit_stride + (row - task->stride * t.first) * line;
        for (int64_t x = 0; x < p->lanes; x += LANES)
            score(queries + (y + t.first) * p->query_stride + p->margin + x, p->query_stride,
                  p->query_columns, key + x, p->key_columns, p->shift, task->width,
                  to + p->margin + x, p->logit_stride - task->stride * line, p->query_columns,
                  t.end - t.first, task->window);
    }
}

/* Compute weighted sums over the windows of a group, and write them to a map. */
static void sum_group(const band_t *b, const float *weights, const float *values, const map_t *map,
                      int64_t y, int64_t rows, float scale) {
    const task_t *task = b->task;
    const plan_t *p = b->plan;
    term_t terms[ROWS * MAX_WINDOW], *t = terms;
    for (int64_t row = 0; row < task->stride * (rows - 1) + task->window; row++) {
        rows_of(row, task->stride, task->window, rows, t);
        if (t->first >= t->end) continue;
        t->row = values + (task->stride * y + task->dilation * row) * p->key_stride;
        for (int64_t r = t->first; r < t->end; r++)
            t->weights[r] = weights + r * p->logit_stride + p->margin +
                            (row - task->stride * r) * task->window * p->query_columns;
        t++;
    }
    float *sums = b->parts.sums;
    for (int64_t x = 0; x < p->lanes; x += LANES)
        sum(terms, t - terms, x, task->width, p->key_columns, p->place, p->shift, task->window,
            sums + x, task->width * p->lanes, p->lanes);
    for (int64_t r = 0; r < rows; r++)
        paste(sums + r * task->width * p->lanes, p->lanes, b->parts.query_column, p->lanes,
              task->width, map, place_of(map, b->image, b->channel, b->top + y + r), 0, scale);
}

/* Compute weighted sums of `source` over the queries whose windows contain a key, and add them to a
   map of keys. */
static void sum_keys(const band_t *b, const float *weights, const float *source, const map_t *map) {
    const task_t *task = b->task;
    const plan_t *p = b->plan;
    int64_t key_rows = task->stride * (b->rows - 1) + 2 * p->reach + 1;
    float *sums = b->parts.sums;
    for (int64_t key = 0; key < key_rows; key += p->group) {
        int64_t rows = key_rows - key < p->group ? key_rows - key : p->group;
        term_t terms[2 * MAX_WINDOW], *t = terms;
        for (int64_t y = 0; y < b->rows; y++) {
            int64_t row =
                key - task->stride * y; /* from the window's top to the group's first row of keys */
            if (row % task->dilation) continue;
            row /= task->dilation;
            t->first = row < 0 ? -row : 0;
            t->end = task->window - row < rows ? task->window - row : rows;
            if (t->first >= t->end) continue;
            t->row = source + y * p->query_stride + p->margin;
            for (int64_t r = t->first; r < t->end; r++)
                t->weights[r] = weights + y * p->logit_stride + p->margin +
                                (row + r) * task->window * p->query_columns;
            t++;
        }
        for (int64_t phase = 0; phase < p->phases; phase++) {
            int64_t place[MAX_WINDOW], shift[MAX_WINDOW], count = 0;
            for (int64_t x = 0; x < task->window; x++) {
                int64_t column = task->dilation * x;
                if (column % task->stride != phase) continue;
                shift[count] = -(column / task->stride);
                place[count++] = x * p->query_columns - column / task->stride;
            }
            for (int64_t x = 0; x < p->phase; x += LANES)
                sum(terms, t - terms, x, task->width, p->query_columns, place, shift, count,
                    sums + phase * p->phase + x, task->width * p->key_columns, p->key_columns);
        }
        int64_t top = task->stride * b->top - p->reach + key;
        for (int64_t r = 0; r < rows; r++)
            paste(sums + r * task->width * p->key_columns, p->key_columns, b->parts.key_column,
                  p->key_columns, task->width, map,
                  place_of(map, b->image, b->channel, mirror(top + r, task->height)), 1, 1);
    }
}

/* Set lanes past the last query to 0. A NaN in these lanes, from a key or a value that is NaN,
   would be added to the sums of other keys. */
static void normalise(const band_t *b, float *logits, int64_t rows) {
    const plan_t *p = b->plan;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t x = 0; x < p->lanes; x += LANES)
            softmax(logits + r * p->logit_stride + p->margin + x, p->query_columns, p->places,
                    first_lanes(b->task->columns - x));
}

static void normalise_backward(const band_t *b, const float *weights, float *grad_logits,
                               int64_t rows) {
    const plan_t *p = b->plan;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t x = 0; x < p->lanes; x += LANES) {
            int64_t at = r * p->logit_stride + p->margin + x;
            softmax_backward(weights + at, grad_logits + at, p->query_columns, p->places,
                             first_lanes(b->task->columns - x));
        }
}

/* Maps: q, k, v, origin (subtracted from the keys; NULL data for no origin), y. */
static void forward_band(const band_t *b, const map_t *maps) {
    const map_t none = {0};
    cut_queries(b, b->parts.queries, &maps[0], b->task->scale);
    cut_keys(b, b->parts.keys, &maps[1], &maps[3]);
    cut_keys(b, b->parts.values, &maps[2], &none);
    for (int64_t y = 0; y < b->rows; y += b->plan->group) {
        int64_t rows = b->rows - y < b->plan->group ? b->rows - y : b->plan->group;
        score_group(b, b->parts.queries, b->parts.keys, b->parts.weights, y, rows);
        normalise(b, b->parts.weights, rows);
        sum_group(b, b->parts.weights, b->parts.values, &maps[4], y, rows, 1);
    }
}

/* Maps: q, k, v, origin, dy, dq, dk, dv; dk and dv are 0 before the call. */
static void backward_band(const band_t *b, const map_t *maps) {
    const map_t none = {0};
    const plan_t *p = b->plan;
    cut_queries(b, b->parts.queries, &maps[0], b->task->scale);
    cut_keys(b, b->parts.keys, &maps[1], &maps[3]);
    cut_keys(b, b->parts.values, &maps[2], &none);
    cut_queries(b, b->parts.grads, &maps[4], 1);
    for (int64_t y = 0; y < b->rows; y += p->group) {
        int64_t rows = b->rows - y < p->group ? b->rows - y : p->group;
        float *weights = b->parts.weights + y * p->logit_stride;
        float *grad_logits = b->parts.grad_logits + y * p->logit_stride;
        score_group(b, b->parts.queries, b->parts.keys, weights, y, rows);
        score_group(b, b->parts.grads, b->parts.values, grad_logits, y, rows);
        normalise(b, weights, rows);
        normalise_backward(b, weights, grad_logits, rows);
        sum_group(b, grad_logits, b->parts.keys, &maps[5], y, rows, b->task->scale);
    }
    sum_keys(b, b->parts.grad_logits, b->parts.queries, &maps[6]);
    sum_keys(b, b->parts.weights, b->parts.grads, &maps[7]);
}

/* ---- tasks ---- */

int omp_get_thread_num(void);

int64_t sliding_abi(void) { return ABI(sizeof(task_t)); }

/* In the forward pass a task is a band of a head; the heads of a band are consecutive tasks, since
   they share cache lines. In the backward pass a task is a head, since the bands of a head add to
   the same rows of keys. */
void sliding(const task_t *task, const map_t *maps, float *workspace, int64_t backward) {
    plan_t p = plan(task);
    int64_t bands = (task->rows + task->band - 1) / task->band;
    int64_t tasks = task->batch * task->heads * (backward ? 1 : bands);
#pragma omp parallel num_threads(task->threads)
    {
        band_t b = {.task = task, .plan = &p};
        int64_t size = divide(task, &p, backward, NULL, &b.parts);
        float *start = (float *)round_up((int64_t)workspace, 4 * LANES);
        start += omp_get_thread_num() * size;
        divide(task, &p, backward, start, &b.parts);
        memset(start, 0, 4 * size); /* margins stay zero */
        name_columns(task, &p, &b.parts);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < tasks; i++) {
            int64_t image = i / task->heads, first = 0, end = bands;
            if (!backward) first = image % bands, end = first + 1, image /= bands;
            b.image = image, b.channel = i % task->heads * task->width;
            for (int64_t band = first; band < end; band++) {
                b.top = band * task->band;
                b.rows = task->rows - b.top < task->band ? task->rows - b.top : task->band;
                backward ? backward_band(&b, maps) : forward_band(&b, maps);
            }
        }
    }
}
