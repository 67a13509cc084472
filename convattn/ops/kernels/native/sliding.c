/* Sliding-window attention on a processor's vectors, forward and backward.

   B batch, N heads of d channels, H W size of the map, K window, s stride, r dilation.

       l_ij = scale q_i . (k_j - p_j),  P_i = softmax(l_i),  y_i = sum_j P_ij v_j
       dl_ij = P_ij (dy_i . v_j - sum_j P_ij dy_i . v_j)
       dq_i = scale sum_j dl_ij (k_j - p_j),  dk_j = scale sum_i dl_ij q_i,  dv_j = sum_i P_ij dy_i

   One task is a head of an image, or a band of its rows. Its pixels are cut into rows of
   [channel][column], so that the lanes of a vector are neighbouring queries: the key that the
   window shows at a place is then a vector, too, that begins r columns further for each place. Of a
   map with a stride, columns lie in s phases, each of every s-th column. Nothing but a band is ever
   copied, and no sum goes across lanes. */

#include "products.h"

#define MOST 32 /* of a window */

typedef struct {
    int64_t batch, heads, width; /* B, N, d */
    int64_t height, breadth;     /* of keys: H, W */
    int64_t rows, columns;       /* of queries */
    int64_t window, stride, dilation;
    int64_t band; /* rows of queries */
    int64_t threads;
    double scale;
} task_t;

/* Where things lie: what follows from a task. */
typedef struct {
    int64_t group;   /* rows of queries that are taken at once */
    int64_t reach;   /* of a window to one side */
    int64_t places;  /* K^2 */
    int64_t lanes;   /* queries of a row, in whole vectors */
    int64_t margin;  /* zeros before and after them */
    int64_t asked;   /* both together */
    int64_t phases;  /* that windows show */
    int64_t phase;   /* columns of a phase */
    int64_t shown;   /* of all phases */
    int64_t seen;    /* rows of keys that a band sees */
    int64_t by_key;  /* floats of a row of keys, and of queries, and of logits */
    int64_t by_query;
    int64_t by_logits;
    int64_t shift[MOST]; /* of the first key at a column of the window */
    int64_t place[MOST]; /* of its logits */
} plan_t;

/* Room of a thread. Backward keeps the logits of a band, forward those of a group. */
typedef struct {
    float *keys, *values;     /* [row][channel][phase][column] */
    float *queries, *wanted;  /* [row][channel][column]; wanted: dy */
    float *weights, *changes; /* [row][place][column]: P and dl */
    float *sums;              /* [row of a group][channel][column] */
    int32_t *shown, *asked;   /* the column of the map that each column is, or -1 */
} room_t;

static plan_t plan(const task_t *task) {
    plan_t p;
    int64_t far = task->dilation * (task->window - 1) / task->stride;
    p.group = task->dilation == 1 ? ROWS : 1; /* rows further apart share no key */
    p.reach = task->dilation * (task->window / 2);
    p.places = task->window * task->window;
    p.lanes = round_up(task->columns, LANES);
    p.margin = round_up(far, LANES);
    p.asked = p.lanes + 2 * p.margin;
    p.phases = task->stride < 2 * p.reach + 1 ? task->stride : 2 * p.reach + 1;
    p.phase = round_up(p.lanes + far, LANES);
    p.shown = p.phases * p.phase;
    p.seen = task->stride * (task->band - 1) + 2 * p.reach + 1;
    p.by_key = task->width * p.shown;
    p.by_query = task->width * p.asked;
    p.by_logits = p.places * p.asked;
    for (int64_t x = 0; x < task->window; x++) {
        int64_t column = task->dilation * x;
        p.shift[x] = column % task->stride * p.phase + column / task->stride;
        p.place[x] = x * p.asked;
    }
    return p;
}

/* Divide a thread's room; return how many floats it has. */
static int64_t divide(const task_t *task, const plan_t *p, int backward, float *at, room_t *room) {
    float *start = at;
    int64_t kept = backward ? task->band : ROWS;
    int64_t wide = backward && p->shown > p->lanes ? p->shown : p->lanes;
    room->keys = at, at += p->seen * p->by_key;
    room->values = at, at += p->seen * p->by_key;
    room->queries = at, at += task->band * p->by_query;
    room->wanted = at, at += backward ? task->band * p->by_query : 0;
    room->weights = at, at += kept * p->by_logits;
    room->changes = at, at += backward ? kept * p->by_logits : 0;
    room->sums = at, at += ROWS * task->width * wide;
    room->shown = (int32_t *)at, at += p->shown;
    room->asked = (int32_t *)at, at += p->lanes;
    return round_up(at - start, LANES);
}

/* Return the floats of room that all threads need. */
int64_t sliding_room(const task_t *task, int64_t backward) {
    plan_t p = plan(task);
    room_t room;
    return LANES + task->threads * divide(task, &p, backward, NULL, &room);
}

/* ---- maps in, maps out ---- */

/* Return the pixel that a mirrored map shows at x, however far outside. */
static int64_t mirror(int64_t x, int64_t size) {
    if (size == 1) return 0;
    int64_t period = 2 * (size - 1);
    x = (x % period + period) % period;
    return x < size ? x : period - x;
}

static void name_columns(const task_t *task, const plan_t *p, room_t *room) {
    int64_t last = task->stride * (task->columns - 1) + 2 * p->reach;
    for (int64_t i = 0; i < p->shown; i++) {
        int64_t x = task->stride * (i % p->phase) + i / p->phase;
        room->shown[i] = x > last ? -1 : mirror(x - p->reach, task->breadth);
    }
    for (int64_t i = 0; i < p->lanes; i++) room->asked[i] = i < task->columns ? i : -1;
}

static int64_t place_of(const map_t *map, int64_t image, int64_t channel, int64_t row) {
    return image * map->image + channel * map->channel + row * map->row;
}

/* Cut a row: to[channel][i] = (map - origin)[channel, column[i]] * scale, or 0 where there is none.
   The row that comes after it in memory is asked for: cut by heads, maps are read in small pieces,
   and the processor does not foresee the next. */
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

/* Paste a row of sums into a map whose channels lie one after another, or add it to what is there. */
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
    room_t room;
    int64_t image, channel, top, rows; /* channel: the first of the head */
} band_t;

static void cut_queries(const band_t *b, float *to, const map_t *map, float scale) {
    const plan_t *p = b->plan;
    map_t none = {0};
    for (int64_t y = 0; y < b->rows; y++)
        cut(to + y * p->by_query + p->margin, p->asked, b->room.asked, p->lanes, b->task->width,
            map, place_of(map, b->image, b->channel, b->top + y), &none, 0, scale);
}

static void cut_keys(const band_t *b, float *to, const map_t *map, const map_t *origin) {
    const plan_t *p = b->plan;
    int64_t first = b->task->stride * b->top - p->reach;
    int64_t seen = b->task->stride * (b->rows - 1) + 2 * p->reach + 1;
    for (int64_t y = 0; y < seen; y++) {
        int64_t row = mirror(first + y, b->task->height);
        cut(to + y * p->by_key, p->shown, b->room.shown, p->shown, b->task->width, map,
            place_of(map, b->image, b->channel, row), origin, place_of(origin, b->image, 0, row), 1);
    }
}

/* The rows [first, end) of a group of `rows` that begins at `y`, to which something counts that lies
   `row` places after the place 0 of the first one, if the others follow at distances of `step`. */
static void rows_of(int64_t row, int64_t step, int64_t window, int64_t rows, term_t *term) {
    term->first = row < window ? 0 : (row - window) / step + 1;
    term->end = row / step + 1 < rows ? row / step + 1 : rows;
}

/* What the queries of a group say of keys: out[row][place] = query . key. */
static void score_group(const band_t *b, const float *queries, const float *keys, float *out,
                        int64_t y, int64_t rows) {
    const task_t *task = b->task;
    const plan_t *p = b->plan;
    int64_t line = task->window * p->asked; /* logits of a row of the window */
    for (int64_t row = 0; row < task->stride * (rows - 1) + task->window; row++) {
        term_t t;
        rows_of(row, task->stride, task->window, rows, &t);
        if (t.first >= t.end) continue;
        const float *key = keys + (task->stride * y + task->dilation * row) * p->by_key;
        float *to = out + t.first * p->by_logits + (row - task->stride * t.first) * line;
        for (int64_t x = 0; x < p->lanes; x += LANES)
            score(queries + (y + t.first) * p->by_query + p->margin + x, p->by_query, p->asked,
                  key + x, p->shown, p->shift, task->width, to + p->margin + x,
                  p->by_logits - task->stride * line, p->asked, t.end - t.first, task->window);
    }
}

/* The sums of what a group sees, weighted, into a map. */
static void sum_group(const band_t *b, const float *weights, const float *seen, const map_t *map,
                      int64_t y, int64_t rows, float scale) {
    const task_t *task = b->task;
    const plan_t *p = b->plan;
    term_t terms[ROWS * MOST], *t = terms;
    for (int64_t row = 0; row < task->stride * (rows - 1) + task->window; row++) {
        rows_of(row, task->stride, task->window, rows, t);
        if (t->first >= t->end) continue;
        t->row = seen + (task->stride * y + task->dilation * row) * p->by_key;
        for (int64_t r = t->first; r < t->end; r++)
            t->weights[r] = weights + r * p->by_logits + p->margin +
                            (row - task->stride * r) * task->window * p->asked;
        t++;
    }
    float *sums = b->room.sums;
    for (int64_t x = 0; x < p->lanes; x += LANES)
        sum(terms, t - terms, x, task->width, p->shown, p->place, p->shift, task->window, sums + x,
            task->width * p->lanes, p->lanes);
    for (int64_t r = 0; r < rows; r++)
        paste(sums + r * task->width * p->lanes, p->lanes, b->room.asked, p->lanes, task->width,
              map, place_of(map, b->image, b->channel, b->top + y + r), 0, scale);
}

/* The sums of what the queries of a band give to the rows of keys that they see, onto a map. */
static void sum_keys(const band_t *b, const float *weights, const float *given, const map_t *map) {
    const task_t *task = b->task;
    const plan_t *p = b->plan;
    int64_t seen = task->stride * (b->rows - 1) + 2 * p->reach + 1;
    float *sums = b->room.sums;
    for (int64_t key = 0; key < seen; key += p->group) {
        int64_t rows = seen - key < p->group ? seen - key : p->group;
        term_t terms[2 * MOST], *t = terms;
        for (int64_t y = 0; y < b->rows; y++) {
            int64_t row = key - task->stride * y; /* of the group's first, below the window's top */
            if (row % task->dilation) continue;
            row /= task->dilation;
            t->first = row < 0 ? -row : 0;
            t->end = task->window - row < rows ? task->window - row : rows;
            if (t->first >= t->end) continue;
            t->row = given + y * p->by_query + p->margin;
            for (int64_t r = t->first; r < t->end; r++)
                t->weights[r] = weights + y * p->by_logits + p->margin +
                                (row + r) * task->window * p->asked;
            t++;
        }
        for (int64_t phase = 0; phase < p->phases; phase++) {
            int64_t place[MOST], shift[MOST], count = 0;
            for (int64_t x = 0; x < task->window; x++) {
                int64_t column = task->dilation * x;
                if (column % task->stride != phase) continue;
                shift[count] = -(column / task->stride);
                place[count++] = x * p->asked - column / task->stride;
            }
            for (int64_t x = 0; x < p->phase; x += LANES)
                sum(terms, t - terms, x, task->width, p->asked, place, shift, count,
                    sums + phase * p->phase + x, task->width * p->shown, p->shown);
        }
        int64_t top = task->stride * b->top - p->reach + key;
        for (int64_t r = 0; r < rows; r++)
            paste(sums + r * task->width * p->shown, p->shown, b->room.shown, p->shown, task->width,
                  map, place_of(map, b->image, b->channel, mirror(top + r, task->height)), 1, 1);
    }
}

/* Lanes past the last query are cleared: what is not a number there, because a key or a value is
   not one, would be in the sums of other keys. */
static void normalise(const band_t *b, float *logits, int64_t rows) {
    const plan_t *p = b->plan;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t x = 0; x < p->lanes; x += LANES)
            softmax(logits + r * p->by_logits + p->margin + x, p->asked, p->places,
                    first_lanes(b->task->columns - x));
}

static void normalise_backward(const band_t *b, const float *weights, float *changes,
                               int64_t rows) {
    const plan_t *p = b->plan;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t x = 0; x < p->lanes; x += LANES) {
            int64_t at = r * p->by_logits + p->margin + x;
            softmax_backward(weights + at, changes + at, p->asked, p->places,
                             first_lanes(b->task->columns - x));
        }
}

/* Maps: q, k, v, origin (subtracted from the keys; without data for none), answers. */
static void forward_band(const band_t *b, const map_t *maps) {
    const map_t none = {0};
    cut_queries(b, b->room.queries, &maps[0], b->task->scale);
    cut_keys(b, b->room.keys, &maps[1], &maps[3]);
    cut_keys(b, b->room.values, &maps[2], &none);
    for (int64_t y = 0; y < b->rows; y += b->plan->group) {
        int64_t rows = b->rows - y < b->plan->group ? b->rows - y : b->plan->group;
        score_group(b, b->room.queries, b->room.keys, b->room.weights, y, rows);
        normalise(b, b->room.weights, rows);
        sum_group(b, b->room.weights, b->room.values, &maps[4], y, rows, 1);
    }
}

/* Maps: q, k, v, origin, dy, dq, dk, dv; the last two are zeros that are added to. */
static void backward_band(const band_t *b, const map_t *maps) {
    const map_t none = {0};
    const plan_t *p = b->plan;
    cut_queries(b, b->room.queries, &maps[0], b->task->scale);
    cut_keys(b, b->room.keys, &maps[1], &maps[3]);
    cut_keys(b, b->room.values, &maps[2], &none);
    cut_queries(b, b->room.wanted, &maps[4], 1);
    for (int64_t y = 0; y < b->rows; y += p->group) {
        int64_t rows = b->rows - y < p->group ? b->rows - y : p->group;
        float *weights = b->room.weights + y * p->by_logits;
        float *changes = b->room.changes + y * p->by_logits;
        score_group(b, b->room.queries, b->room.keys, weights, y, rows);
        score_group(b, b->room.wanted, b->room.values, changes, y, rows);
        normalise(b, weights, rows);
        normalise_backward(b, weights, changes, rows);
        sum_group(b, changes, b->room.keys, &maps[5], y, rows, b->task->scale);
    }
    sum_keys(b, b->room.changes, b->room.queries, &maps[6]);
    sum_keys(b, b->room.weights, b->room.wanted, &maps[7]);
}

/* ---- tasks ---- */

int omp_get_thread_num(void);

/* Forward, a band is a task of its own, and the heads of a band follow one another: they share
   what the processor has fetched. Backward, a head is one, whose bands add to the same rows. */
void sliding(const task_t *task, const map_t *maps, float *space, int64_t backward) {
    plan_t p = plan(task);
    int64_t bands = (task->rows + task->band - 1) / task->band;
    int64_t tasks = task->batch * task->heads * (backward ? 1 : bands);
#pragma omp parallel num_threads(task->threads)
    {
        band_t b = {.task = task, .plan = &p};
        int64_t size = divide(task, &p, backward, NULL, &b.room);
        float *start = (float *)round_up((int64_t)space, 4 * LANES);
        start += omp_get_thread_num() * size;
        divide(task, &p, backward, start, &b.room);
        memset(start, 0, 4 * size); /* margins stay zero */
        name_columns(task, &p, &b.room);
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
