// Softmax attention with an online softmax, in tiles: out = softmax(q k^T scale + bias) v for each
// image and head. Scores exist only for one tile.
//
// A workgroup has TX x RG threads and takes BQ = 8 RG queries of one head against BK = 4 TX keys at
// a time. A thread (tx, ty) holds two register tiles: scores of 8 queries x 4 keys, and sums of 8
// queries x 8 columns, for the same queries 8 ty .. 8 ty + 7; a head has up to 8 TX columns.
// Vectors of four contain four queries, so that a row's maximum and its rescaling act on whole
// vectors and the weights are stored in workgroup memory without being transposed.
//
//   head      TX  RG  queries  keys  DC  PK  VK  memory
//   <= 64      8   8       64    32  32  32  32   16 KB
//   <= 128    16   8       64    64  32  32  16   16 KB
//             16   8       64    64  64  64  32   32 KB
//   <= 512    64   4       32   256   8  64   4   16 KB
//             64   4       32   256  16  64   8   24 KB
//
// Workgroup memory is f32, used twice for each tile of keys: first for q and k, DC columns of both
// at a time, transposed (a column's queries and keys are contiguous, so that a step reads three
// vectors for 32 multiply-adds); then for the weights of PK keys and, after them, v of VK keys
// (four vectors for 64 multiply-adds). Queries are read again for each tile of keys, from the
// cache: keeping them would take all of the memory. Operands of all types are f32 there, because
// converting them in the inner loops would cost as much as the products.
//
// The limit is multiply-adds: a tile's loads are 1/32 to 1/64 of them, and there is a pair of
// barriers per 256 to 2048 multiply-adds of each thread. More memory halves the barriers and the
// waits for loads. A thread holds 16 vectors of sums, 8 of scores, 4 of maxima and of weights'
// sums, and, at the peak, 4 that it loads: 128 registers and addresses (Mesa takes 152 for AMD),
// which leave none for loading ahead. If PK is all keys of a tile, scores need no registers while
// values are added. Inner loops name their registers instead of indexing arrays, since not every
// driver unrolls loops. Where possible, loops that load have the same number of steps for all
// threads, so that compilers can issue the loads of all steps at once.
//
// A key that `causal` hides from a query still has a weight, 0: a NaN or an infinity among its
// values reaches the earlier queries in the same tile.
//
// This source follows attention_common.wgsl. The line before common.wgsl has the constants TX, RG,
// DC, PK, VK.

const THREADS: u32 = TX * RG;
// Vectors of queries and of keys.
const QV: u32 = 2u * RG;
const KV: u32 = TX;
const BQ: u32 = 4u * QV;
const BK: u32 = 4u * KV;
// Loads of four rows and eight columns for DC columns of queries, and of queries and keys.
const Q_TASKS: u32 = QV * (DC / 8u);
const TASKS: u32 = (QV + KV) * (DC / 8u);
// The start of keys (after queries) and of values (after weights), in vectors, and the number of
// all vectors.
const KEYS: u32 = DC * QV;
const VALUES: u32 = PK * QV;
const VECTORS: u32 = max(TASKS * 8u, VALUES + VK * 2u * TX);

var<workgroup> memory: array<vec4<f32>, VECTORS>;

// Four rows of four columns become four columns of four rows, `pitch` vectors apart.
fn turn(at: u32, pitch: u32, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) {
    memory[at] = vec4<f32>(a.x, b.x, c.x, d.x);
    memory[at + pitch] = vec4<f32>(a.y, b.y, c.y, d.y);
    memory[at + 2u * pitch] = vec4<f32>(a.z, b.z, c.z, d.z);
    memory[at + 3u * pitch] = vec4<f32>(a.w, b.w, c.w, d.w);
}
fn zero(at: u32, pitch: u32) {
    for (var i = 0u; i < 8u; i++) { memory[at + i * pitch] = vec4<f32>(); }
}

// Four rows and eight columns of the queries from `row0` on or of the keys from `j0` on, of columns
// `d0` and following. Rows after the last are the last one again.
fn load(task: u32, d0: u32, row0: u32, j0: u32, q_at: u32, k_at: u32) {
    let queries = task < Q_TASKS;
    let i = select((task - Q_TASKS) % KV, task % QV, queries);
    let d = select((task - Q_TASKS) / KV, task / QV, queries) * 8u;
    let pitch = select(KV, QV, queries);
    let at = select(KEYS, 0u, queries) + d * pitch + i;
    if d0 + d >= params.head_dim {
        zero(at, pitch);
        return;
    }
    let r = select(j0, row0, queries) + 4u * i;
    let last = select(params.tokens, params.rows, queries) - 1u;
    let stride = select(params.k_stride, params.q_stride, queries);
    let e = select(k_at, q_at, queries) + d0 + d;
    let ea = e + min(r, last) * stride;
    let eb = e + min(r + 1u, last) * stride;
    let ec = e + min(r + 2u, last) * stride;
    let ed = e + min(r + 3u, last) * stride;
    if IN_TYPE == BF16 {
        var a = vec4<u32>();
        var b = vec4<u32>();
        var c = vec4<u32>();
        var d = vec4<u32>();
        if queries {
            a = q[ea >> 3u];
            b = q[eb >> 3u];
            c = q[ec >> 3u];
            d = q[ed >> 3u];
        } else {
            a = k[ea >> 3u];
            b = k[eb >> 3u];
            c = k[ec >> 3u];
            d = k[ed >> 3u];
        }
        turn(at, pitch, quad(a.xy), quad(b.xy), quad(c.xy), quad(d.xy));
        turn(at + 4u * pitch, pitch, quad(a.zw), quad(b.zw), quad(c.zw), quad(d.zw));
        return;
    }
    // One half after the other, because there are not enough registers.
    for (var half = 0u; half < 2u; half++) {
        var a = vec4<u32>();
        var b = vec4<u32>();
        var c = vec4<u32>();
        var d = vec4<u32>();
        if queries {
            a = q[(ea >> 2u) + half];
            b = q[(eb >> 2u) + half];
            c = q[(ec >> 2u) + half];
            d = q[(ed >> 2u) + half];
        } else {
            a = k[(ea >> 2u) + half];
            b = k[(eb >> 2u) + half];
            c = k[(ec >> 2u) + half];
            d = k[(ed >> 2u) + half];
        }
        turn(at + half * 4u * pitch, pitch, bitcast<vec4<f32>>(a), bitcast<vec4<f32>>(b), bitcast<vec4<f32>>(c), bitcast<vec4<f32>>(d));
    }
}

// Stores the weights of four keys, in vectors of queries, at those of keys `key .. key + 3`.
// Vectors are permuted by the number of the thread; otherwise all threads of a row would write to
// the same banks.
fn keep(
    key: u32, tx: u32, ty: u32,
    a0: vec4<f32>, a1: vec4<f32>, a2: vec4<f32>, a3: vec4<f32>,
    b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>,
) {
    let a = key * QV + ((2u * ty) ^ (tx & 7u));
    let b = key * QV + ((2u * ty) ^ (tx & 7u) ^ 1u);
    memory[a] = a0;
    memory[b] = b0;
    memory[a + QV] = a1;
    memory[b + QV] = b1;
    memory[a + 2u * QV] = a2;
    memory[b + 2u * QV] = b2;
    memory[a + 3u * QV] = a3;
    memory[b + 3u * QV] = b3;
}

// For the queries `i .. i + 3`.
fn bias_quad(i: u32, j: u32, head: u32) -> vec4<f32> {
    return vec4<f32>(bias_at(i, j, head), bias_at(i + 1u, j, head), bias_at(i + 2u, j, head), bias_at(i + 3u, j, head));
}

// Which scores of key `j` and the queries `i .. i + 3` are hidden.
fn mask(s: vec4<f32>, i: u32, j: u32) -> vec4<f32> {
    let hidden = vec4<bool>(j >= params.tokens) | ((vec4<u32>(j) > vec4<u32>(i, i + 1u, i + 2u, i + 3u)) & vec4<bool>(params.causal != 0u));
    return select(s, vec4<f32>(HIDDEN), hidden);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(num_workgroups) n: vec3<u32>, @builtin(local_invocation_index) t: u32) {
    let group = params.first + wg.y * n.x + wg.x;
    if group >= params.groups { return; }
    let row0 = group % params.row_tiles * BQ;
    let head = group / params.row_tiles % params.heads;
    let picture = group / params.row_tiles / params.heads;
    let tx = t % TX;
    let ty = t / TX;
    let column0 = head * params.head_dim;
    // The number of the thread's first query in its image.
    let token = params.row_first + row0 + 8u * ty;
    let q_at = params.q_base + picture * params.tokens * params.q_stride + column0;
    let k_at = params.k_base + picture * params.tokens * params.k_stride + column0;
    let v_at = params.v_base + picture * params.tokens * params.v_stride + column0;
    // Keys from `open` on need masks, those from `keys` on are hidden from all queries.
    let tokens = params.tokens;
    let causal = params.causal != 0u;
    let scale = vec4<f32>(factor());
    let unit = unit();
    let keys = select(tokens, min(tokens, params.row_first + row0 + BQ), causal);
    let open = select(tokens, min(tokens, params.row_first + row0 + 1u), causal);

    var ma = vec4<f32>(HIDDEN);
    var mb = vec4<f32>(HIDDEN);
    // Sums of the weights of this thread's keys.
    var la = vec4<f32>();
    var lb = vec4<f32>();
    var oa0 = vec4<f32>();
    var oa1 = vec4<f32>();
    var oa2 = vec4<f32>();
    var oa3 = vec4<f32>();
    var oa4 = vec4<f32>();
    var oa5 = vec4<f32>();
    var oa6 = vec4<f32>();
    var oa7 = vec4<f32>();
    var ob0 = vec4<f32>();
    var ob1 = vec4<f32>();
    var ob2 = vec4<f32>();
    var ob3 = vec4<f32>();
    var ob4 = vec4<f32>();
    var ob5 = vec4<f32>();
    var ob6 = vec4<f32>();
    var ob7 = vec4<f32>();

    for (var j0 = 0u; j0 < keys; j0 += BK) {
        var sa0 = vec4<f32>();
        var sa1 = vec4<f32>();
        var sa2 = vec4<f32>();
        var sa3 = vec4<f32>();
        var sb0 = vec4<f32>();
        var sb1 = vec4<f32>();
        var sb2 = vec4<f32>();
        var sb3 = vec4<f32>();
        for (var d0 = 0u; d0 < params.head_dim; d0 += DC) {
            workgroupBarrier();
            for (var step = 0u; step < TASKS; step += THREADS) {
                let b = step + t;
                if TASKS % THREADS != 0u && b >= TASKS { break; }
                load(b, d0, row0, j0, q_at, k_at);
            }
            workgroupBarrier();
            for (var d = 0u; d < DC; d++) {
                let qa = memory[d * QV + 2u * ty];
                let qb = memory[d * QV + 2u * ty + 1u];
                let c = memory[KEYS + d * KV + tx];
                sa0 = fma(qa, c.xxxx, sa0);
                sb0 = fma(qb, c.xxxx, sb0);
                sa1 = fma(qa, c.yyyy, sa1);
                sb1 = fma(qb, c.yyyy, sb1);
                sa2 = fma(qa, c.zzzz, sa2);
                sb2 = fma(qb, c.zzzz, sb2);
                sa3 = fma(qa, c.wwww, sa3);
                sb3 = fma(qb, c.wwww, sb3);
            }
        }

        let key = j0 + 4u * tx;
        if BIAS_TYPE != NO_BIAS {
            sa0 = fma(sa0, scale, bias_quad(token, key, head));
            sa1 = fma(sa1, scale, bias_quad(token, key + 1u, head));
            sa2 = fma(sa2, scale, bias_quad(token, key + 2u, head));
            sa3 = fma(sa3, scale, bias_quad(token, key + 3u, head));
            sb0 = fma(sb0, scale, bias_quad(token + 4u, key, head));
            sb1 = fma(sb1, scale, bias_quad(token + 4u, key + 1u, head));
            sb2 = fma(sb2, scale, bias_quad(token + 4u, key + 2u, head));
            sb3 = fma(sb3, scale, bias_quad(token + 4u, key + 3u, head));
        } else {
            sa0 *= scale;
            sa1 *= scale;
            sa2 *= scale;
            sa3 *= scale;
            sb0 *= scale;
            sb1 *= scale;
            sb2 *= scale;
            sb3 *= scale;
        }
        if j0 + BK > open {
            sa0 = mask(sa0, token, key);
            sa1 = mask(sa1, token, key + 1u);
            sa2 = mask(sa2, token, key + 2u);
            sa3 = mask(sa3, token, key + 3u);
            sb0 = mask(sb0, token + 4u, key);
            sb1 = mask(sb1, token + 4u, key + 1u);
            sb2 = mask(sb2, token + 4u, key + 2u);
            sb3 = mask(sb3, token + 4u, key + 3u);
        }

        // The maximum of a row is that of the TX threads that have its keys. Every thread reads all
        // of them, which is cheaper than a third barrier.
        workgroupBarrier();
        memory[2u * ty * TX + tx] = max(max(sa0, sa1), max(sa2, sa3));
        memory[(2u * ty + 1u) * TX + tx] = max(max(sb0, sb1), max(sb2, sb3));
        workgroupBarrier();
        var na = ma;
        var nb = mb;
        for (var i = 0u; i < TX; i++) {
            na = max(na, memory[2u * ty * TX + i]);
            nb = max(nb, memory[(2u * ty + 1u) * TX + i]);
        }
        let ra = weight(ma - na, unit);
        let rb = weight(mb - nb, unit);
        ma = na;
        mb = nb;
        sa0 = weight(sa0 - na, unit);
        sa1 = weight(sa1 - na, unit);
        sa2 = weight(sa2 - na, unit);
        sa3 = weight(sa3 - na, unit);
        sb0 = weight(sb0 - nb, unit);
        sb1 = weight(sb1 - nb, unit);
        sb2 = weight(sb2 - nb, unit);
        sb3 = weight(sb3 - nb, unit);
        la = la * ra + ((sa0 + sa1) + (sa2 + sa3));
        lb = lb * rb + ((sb0 + sb1) + (sb2 + sb3));
        oa0 *= ra;
        oa1 *= ra;
        oa2 *= ra;
        oa3 *= ra;
        oa4 *= ra;
        oa5 *= ra;
        oa6 *= ra;
        oa7 *= ra;
        ob0 *= rb;
        ob1 *= rb;
        ob2 *= rb;
        ob3 *= rb;
        ob4 *= rb;
        ob5 *= rb;
        ob6 *= rb;
        ob7 *= rb;

        workgroupBarrier();
        if PK == BK { keep(4u * tx, tx, ty, sa0, sa1, sa2, sa3, sb0, sb1, sb2, sb3); }
        for (var v0 = 0u; v0 < BK && j0 + v0 < keys; v0 += VK) {
            if v0 > 0u { workgroupBarrier(); }
            // If there is no room for the weights of the whole tile, those of the next PK keys
            // replace the last ones.
            if PK < BK && v0 % PK == 0u && 4u * tx >= v0 && 4u * tx < v0 + PK {
                keep(4u * tx - v0, tx, ty, sa0, sa1, sa2, sa3, sb0, sb1, sb2, sb3);
            }
            for (var step = 0u; step < VK * TX; step += THREADS) {
                let i = (step + t) / TX;
                let r = j0 + v0 + i;
                var x = Oct(vec4<f32>(), vec4<f32>());
                if r < keys && 8u * tx < params.head_dim { x = v_oct(v_at + r * params.v_stride + 8u * tx); }
                memory[VALUES + i * (2u * TX) + tx] = x.low;
                memory[VALUES + i * (2u * TX) + TX + tx] = x.high;
            }
            workgroupBarrier();
            for (var i = 0u; i < VK; i++) {
                let at = (v0 % PK + i) * QV + ((2u * ty) ^ (((v0 + i) / 4u) & 7u));
                let pa = memory[at];
                let pb = memory[at ^ 1u];
                let x = memory[VALUES + i * (2u * TX) + tx];
                let y = memory[VALUES + i * (2u * TX) + TX + tx];
                oa0 = fma(pa, x.xxxx, oa0);
                ob0 = fma(pb, x.xxxx, ob0);
                oa1 = fma(pa, x.yyyy, oa1);
                ob1 = fma(pb, x.yyyy, ob1);
                oa2 = fma(pa, x.zzzz, oa2);
                ob2 = fma(pb, x.zzzz, ob2);
                oa3 = fma(pa, x.wwww, oa3);
                ob3 = fma(pb, x.wwww, ob3);
                oa4 = fma(pa, y.xxxx, oa4);
                ob4 = fma(pb, y.xxxx, ob4);
                oa5 = fma(pa, y.yyyy, oa5);
                ob5 = fma(pb, y.yyyy, ob5);
                oa6 = fma(pa, y.zzzz, oa6);
                ob6 = fma(pb, y.zzzz, ob6);
                oa7 = fma(pa, y.wwww, oa7);
                ob7 = fma(pb, y.wwww, ob7);
            }
        }
    }

    workgroupBarrier();
    memory[2u * ty * TX + tx] = la;
    memory[(2u * ty + 1u) * TX + tx] = lb;
    workgroupBarrier();
    la = vec4<f32>();
    lb = vec4<f32>();
    for (var i = 0u; i < TX; i++) {
        la += memory[2u * ty * TX + i];
        lb += memory[(2u * ty + 1u) * TX + i];
    }
    if 8u * tx >= params.head_dim { return; }
    let row = row0 + 8u * ty;
    let column = column0 + 8u * tx;
    store(picture, row, column, vec4<f32>(oa0.x, oa1.x, oa2.x, oa3.x) / la.x, vec4<f32>(oa4.x, oa5.x, oa6.x, oa7.x) / la.x);
    store(picture, row + 1u, column, vec4<f32>(oa0.y, oa1.y, oa2.y, oa3.y) / la.y, vec4<f32>(oa4.y, oa5.y, oa6.y, oa7.y) / la.y);
    store(picture, row + 2u, column, vec4<f32>(oa0.z, oa1.z, oa2.z, oa3.z) / la.z, vec4<f32>(oa4.z, oa5.z, oa6.z, oa7.z) / la.z);
    store(picture, row + 3u, column, vec4<f32>(oa0.w, oa1.w, oa2.w, oa3.w) / la.w, vec4<f32>(oa4.w, oa5.w, oa6.w, oa7.w) / la.w);
    store(picture, row + 4u, column, vec4<f32>(ob0.x, ob1.x, ob2.x, ob3.x) / lb.x, vec4<f32>(ob4.x, ob5.x, ob6.x, ob7.x) / lb.x);
    store(picture, row + 5u, column, vec4<f32>(ob0.y, ob1.y, ob2.y, ob3.y) / lb.y, vec4<f32>(ob4.y, ob5.y, ob6.y, ob7.y) / lb.y);
    store(picture, row + 6u, column, vec4<f32>(ob0.z, ob1.z, ob2.z, ob3.z) / lb.z, vec4<f32>(ob4.z, ob5.z, ob6.z, ob7.z) / lb.z);
    store(picture, row + 7u, column, vec4<f32>(ob0.w, ob1.w, ob2.w, ob3.w) / lb.w, vec4<f32>(ob4.w, ob5.w, ob6.w, ob7.w) / lb.w);
}
