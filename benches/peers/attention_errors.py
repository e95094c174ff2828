"""Errors of attention in narrow types, as docs/rejected.md names them: int8 with other scales or without the rotation, and v in FP8.
Usage: python attention_errors.py   (PyPI: torch). One head of 128 columns, 256 queries, 1024 keys; the relative error (Frobenius norm) against f64."""
import torch

torch.manual_seed(0)
DIM, QUERIES, KEYS = 128, 256, 1024


def rotation(size):
    h = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]]).double() / 2
    return h if size == 4 else torch.kron(rotation(size // 4), h)


def turned(x):
    return (x.view(len(x), -1, 64) @ rotation(64)).view(x.shape)


def int8(x, rows):
    """Integers with one scale for `rows` rows."""
    most = x.abs().view(-1, rows * x.shape[1]).amax(1).repeat_interleave(rows)[:, None] / 127
    return (x / most).round() * most


def attention(q, k, v, narrow_q=None, narrow_k=None, narrow_p=None, narrow_v=None):
    apply = lambda f, x: f(x) if f else x
    scores = apply(narrow_q, q) @ apply(narrow_k, k - k.mean(0) if narrow_k else k).T / DIM**0.5
    p = torch.exp(scores - scores.amax(1, keepdim=True))
    return apply(narrow_p, p) @ apply(narrow_v, v) / p.sum(1, keepdim=True)


def f16(x):
    return x.half().double()


def e4m3(x):
    """One scale a column."""
    scale = x.abs().amax(0, keepdim=True) / 448
    return (x / scale).to(torch.float8_e4m3fn).double() * scale


def show(name, got, want):
    print(f'{name}: {100 * ((got - want).norm() / want.norm()).item():.2f} %')


def scales_of(q_rows, k_rows, rotated=True):
    turn = turned if rotated else lambda x: x
    return dict(narrow_q=lambda q: int8(turn(q), q_rows), narrow_k=lambda k: int8(turn(k), k_rows), narrow_p=f16, narrow_v=f16)


q, k, v = [torch.randn(n, DIM, dtype=torch.float64) for n in (QUERIES, KEYS, KEYS)]
exact = attention(q, k, v)
show('int8, a scale for each row', attention(q, k, v, **scales_of(1, 1)), exact)
show('int8, a scale for 64 keys', attention(q, k, v, **scales_of(1, 64)), exact)
show('int8, a scale for 64 keys and for 32 queries', attention(q, k, v, **scales_of(32, 64)), exact)
show('v in f16', attention(q, k, v, **scales_of(1, 1)), exact)
show('weights and v in e4m3', attention(q, k, v, **(scales_of(1, 1) | dict(narrow_p=lambda p: (448 * p).to(torch.float8_e4m3fn).double() / 448, narrow_v=e4m3))), exact)
large = k.clone()
large[:, torch.randperm(DIM)[:4]] *= 8
exact = attention(q, large, v)
for name, rows in dict(rows=(1, 1), blocks=(32, 64)).items():
    for rotated in (False, True):
        show(f'4 columns of k 8 times as large, scales of {name}, {"rotated" if rotated else "not rotated"}', attention(q, large, v, **scales_of(*rows, rotated)), exact)
