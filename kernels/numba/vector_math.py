"""Elementary functions without branches, tables and calls, so that LLVM vectorizes the loops they are used in.

Numba's `math.exp` and the like are calls of the C library, one number at a time. Each function here takes float32 or
float64 numbers, propagates NaN, and has the right limits at infinities. The bounds on errors, in units in the last
place of the result, were measured against mpmath and are held by tests.
"""

from __future__ import annotations

import math
from typing import Any

from numba import types
from numba.extending import intrinsic

from fcdense.kernels.numba.arithmetic import Value, copysign, formula, horner, where
from fcdense.kernels.numba.arithmetic import sqrt as square_root

__all__ = [
    "arctan", "at_least", "at_most", "cos", "cosh", "exp", "expm1", "hypot", "log", "log1p", "maximum", "minimum",
    "select", "sin", "sinh", "sqrt", "tanh", "within_reach",
]  # fmt: skip

LOG2_E = 1.4426950408889634074
# ln 2 in two parts: the first has trailing zeros, so that its product with an exponent is exact (fdlibm).
LN2_HIGH = (6.9313812256e-01, 6.93147180369123816490e-01)
LN2_LOW = (9.0580006145e-06, 1.90821492927058770002e-10)
# Added to a small number it leaves its nearest integer in the last bits of the sum: 1.5 * 2^23 and 1.5 * 2^52.
ROUNDER = (12582912.0, 6755399441055744.0)
ROUNDER_BITS = (0x4B400000, 0x4338000000000000)
MANTISSA_BITS = (23, 52)
BIAS = (127, 1023)

# (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2, the error relative to exp(r) - 1: 1.4e-8 and 1.8e-17 (Remez's algorithm).
EXP_FLOAT32 = (1.394645114133e-3, 8.366599836092e-3, 4.166628217297896e-2, 1.6666542906479325e-1, 5.0000000618e-1)
EXP_FLOAT64 = (
    *(2.5114528666083277e-8, 2.7626338955818841e-7, 2.7557227789124326e-6, 2.4801504437640069e-5),
    *(1.9841269903199957e-4, 1.3888888932359281e-3, 8.3333333333145227e-3, 4.1666666666573810e-2),
    *(1.6666666666666686e-1, 5.0000000000000055e-1),
)
# (log(1 + f) - f + f^2/2) in terms of s = f / (2 + f), divided by s^2, in powers of s^2 (fdlibm).
LOG_FLOAT32 = (2.4279078841e-1, 2.8498786688e-1, 4.0000972152e-1, 6.6666662693e-1)
LOG_FLOAT64 = (
    *(1.479819860511658591e-1, 1.531383769920937332e-1, 1.818357216161805012e-1, 2.222219843214978396e-1),
    *(2.857142874366239149e-1, 3.999999999940941908e-1, 6.666666666666735130e-1),
)
# Bits of 1 and of sqrt(1/2), rounded as fdlibm does.
ONE_BITS = (0x3F800000, 0x3FF0000000000000)
ROOT_BITS = (0x3F3504F3, 0x3FE6A09E00000000)

# pi / 2 in three parts, the first two with trailing zeros, and the largest number they serve (Cephes, fdlibm).
HALF_PI = ((1.5703125, 1.57079632673412561417), (4.837512969970703e-4, 6.07710050630396597660e-11))
HALF_PI_REST = (7.54978995489188e-8, 2.02226624879595063154e-21)
REACH = (1e4, 1e6)
SIN_FLOAT32 = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
SIN_FLOAT64 = (
    *(1.58969099521155010221e-10, -2.50507602534068634195e-8, 2.75573137070700676789e-6),
    *(-1.98412698298579493134e-4, 8.33333333332248946124e-3, -1.66666666666666324348e-1),
)
COS_FLOAT32 = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
COS_FLOAT64 = (
    *(-1.13596475577881948265e-11, 2.08757232129817482790e-9, -2.75573143513906633035e-7),
    *(2.48015872894767294178e-5, -1.38888888888741095749e-3, 4.16666666666666019037e-2),
)

ATAN_FLOAT32 = (8.05374449538e-2, -1.38776856032e-1, 1.99777106478e-1, -3.33329491539e-1)
ATAN_P = (
    *(-8.750608600031904122785e-1, -1.615753718733365076637e1, -7.500855792314704667340e1),
    *(-1.228866684490136173410e2, -6.485021904942025371773e1),
)
ATAN_Q = (
    *(1.0, 2.485846490142306297962e1, 1.650270098316988542046e2, 4.328810604912902668951e2),
    *(4.853903996359136964868e2, 1.945506571482613964425e2),
)


# ---- choices ---------------------------------------------------------------------------------------------------------


def _at_least(x: Value, bound: Value | float) -> Value:
    return where(x.constant(bound) > x, x.constant(bound), x)


def _at_most(x: Value, bound: Value | float) -> Value:
    return where(x.constant(bound) < x, x.constant(bound), x)


def _maximum(a: Value, b: Value) -> Value:
    return where(a.compare("!=", a), a, where(a > b, a, b))


def _minimum(a: Value, b: Value) -> Value:
    return where(a.compare("!=", a), a, where(a < b, a, b))


# ---- exponentials ----------------------------------------------------------------------------------------------------


def _reduced(x: Value) -> tuple[Value, Value]:
    """n and exp(r) - 1 of x = n ln 2 + r, |r| <= ln(2)/2, n a whole number (as an integer) of at most 1100."""
    shifted = x * LOG2_E + x.of(*ROUNDER)
    n = shifted - x.of(*ROUNDER)
    r = x - n * x.of(*LN2_HIGH) - n * x.of(*LN2_LOW)
    return shifted.bits() - x.of(*ROUNDER_BITS), r + r * r * horner(r, x.of(EXP_FLOAT32, EXP_FLOAT64))


def _power_of_two(biased: Value) -> Value:
    return (biased << biased.of(*MANTISSA_BITS)).number()


def _exp(x: Value) -> Value:
    x = _at_most(_at_least(x, x.of(-104.0, -746.0)), x.of(89.0, 710.0))
    n, rest = _reduced(x)
    # 2^n in two factors, as n reaches beyond the exponents of normal numbers on both sides.
    bias = x.of(*BIAS)
    half = (n + 2 * (bias + 1)) >> 1
    return (rest + 1.0) * _power_of_two(half - 1) * _power_of_two(n - half + (2 * bias + 1))


def _expm1(x: Value) -> Value:
    x = _at_most(_at_least(x, x.of(-18.0, -39.0)), x.of(89.0, 710.0))
    n, rest = _reduced(x)
    bias = x.of(*BIAS)
    beyond = n > bias
    scale = _power_of_two(where(beyond, n - 1, n) + bias)
    return (scale * rest + (scale - 1.0)) * where(beyond, x.constant(2.0), 1.0)


def _tanh(x: Value) -> Value:
    size = _at_most(abs(x), x.of(10.0, 20.0))  # where tanh rounds to 1
    n, rest = _reduced(size + size)
    scale = _power_of_two(n + x.of(*BIAS))
    e = scale * rest + (scale - 1.0)
    return copysign(e / (e + 2.0), x)


def _exp_half_squared(size: Value) -> Value:
    """exp(size) / 2, where exp(size) may be beyond the largest number."""
    root = _exp(size * 0.5)
    return root * 0.5 * root


def _sinh(x: Value) -> Value:
    size = abs(x)
    e = _expm1(size)
    near = (e + e / (e + 1.0)) * 0.5
    return copysign(where(size > x.of(9.0, 20.0), _exp_half_squared(size), near), x)


def _cosh(x: Value) -> Value:
    size = abs(x)
    e = _exp(size)
    return where(size > x.of(9.0, 20.0), _exp_half_squared(size), e * 0.5 + 0.5 / e)


# ---- logarithms ------------------------------------------------------------------------------------------------------


def _log_parts(x: Value) -> tuple[Value, Value]:
    """k and f of x = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for normal x > 0; both floating-point numbers."""
    mantissa = x.of(*MANTISSA_BITS)
    pattern = x.bits() + (x.of(*ONE_BITS) - x.of(*ROOT_BITS))
    k = (pattern >> mantissa) - x.of(*BIAS)
    f = ((pattern & ((1 << mantissa) - 1)) + x.of(*ROOT_BITS)).number() - 1.0
    return (k + x.of(*ROUNDER_BITS)).number() - x.of(*ROUNDER), f


def _log_of(k: Value, f: Value, correction: Value | float) -> Value:
    """log(2^k (1 + f)) + correction, as fdlibm sums it: small terms first."""
    half_square = f * f * 0.5
    s = f / (f + 2.0)
    s2 = s * s
    series = s2 * horner(s2, f.of(LOG_FLOAT32, LOG_FLOAT64))
    low = k * f.of(*LN2_LOW) + correction
    return k * f.of(*LN2_HIGH) - ((half_square - (s * (half_square + series) + low)) - f)


def _above(x: Value, start: float, y: Value) -> Value:
    """y where x > start, -inf at the start, NaN below it and where x is NaN."""
    return where(x > start, y, where(x.compare("==", start), x.constant(-math.inf), math.nan))


def _log(x: Value) -> Value:
    tiny = x < x.of(2.0**-126, 2.0**-1022)
    k, f = _log_parts(where(tiny, x * x.of(2.0**25, 2.0**54), x))
    y = _log_of(where(tiny, k - x.of(25.0, 54.0), k), f, 0.0)
    y = where(x < math.inf, y, x)
    return where(
        x > 0.0, y, where(x < 0.0, x.constant(math.nan), where(x.compare("==", 0.0), x.constant(-math.inf), x))
    )


def _log1p(x: Value) -> Value:
    u = x + 1.0
    # What rounding took from 1 + x, in units of u.
    lost = where(u > 2.0, 1.0 - (u - x), x - (u - 1.0)) / u
    k, f = _log_parts(u)
    y = where(x < math.inf, _log_of(k, f, lost), x)
    return where(
        x > -1.0, y, where(x < -1.0, x.constant(math.nan), where(x.compare("==", -1.0), x.constant(-math.inf), x))
    )


# ---- circular functions ----------------------------------------------------------------------------------------------


def _sine(x: Value, quarter: int) -> Value:
    """sin(x + quarter pi / 2)."""
    shifted = x * (2.0 / math.pi) + x.of(*ROUNDER)
    n = shifted - x.of(*ROUNDER)
    r = x - n * x.of(*HALF_PI[0]) - n * x.of(*HALF_PI[1]) - n * x.of(*HALF_PI_REST)
    z = r * r
    sine = r + r * z * horner(z, x.of(SIN_FLOAT32, SIN_FLOAT64))
    cosine = 1.0 - (z * 0.5 - z * z * horner(z, x.of(COS_FLOAT32, COS_FLOAT64)))
    turns = shifted.bits() + quarter  # the bits of ROUNDER end in zeros
    size = where((turns & 1).compare("==", 0), sine, cosine)
    return (size.bits() ^ ((turns & 2) << x.of(30, 62))).number()


# ---- others ----------------------------------------------------------------------------------------------------------


def _arctan(x: Value) -> Value:
    size = abs(x)
    large, middle = size > 2.414213562373095, size > x.of(0.4142135623730950, 0.66)
    t = where(large, -1.0 / size, where(middle, (size - 1.0) / (size + 1.0), size))
    z = t * t
    series = z * horner(z, ATAN_P) / horner(z, ATAN_Q) if x.is_wide else z * horner(z, ATAN_FLOAT32)
    # pi/2 and pi/4 with the digits that they lack.
    rest = where(large, x.constant(6.123233995736766e-17), where(middle, x.constant(3.061616997868383e-17), 0.0))
    start = where(large, x.constant(math.pi / 2), where(middle, x.constant(math.pi / 4), 0.0))
    return copysign(start + (t + (t * series + rest)), x)


def _hypot(a: Value, b: Value) -> Value:
    a, b = abs(a), abs(b)
    larger, smaller = _maximum(a, b), _minimum(a, b)
    ratio = smaller / where(larger.compare("==", 0.0), larger.constant(1.0), larger)
    y = larger * square_root(ratio * ratio + 1.0)
    infinite = a.compare("==", math.inf) | b.compare("==", math.inf)
    return where(infinite, a.constant(math.inf), y)


# ---- what compiled code calls ----------------------------------------------------------------------------------------


@intrinsic
def select(typing_context: Any, condition: Any, a: Any, b: Any) -> Any:
    """a where the condition holds, else b: both are computed, nothing branches."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(*args)

    return a(types.boolean, a, a), generate


@formula
def at_least(x: Value, bound: Value) -> Value:
    """max(x, bound) for a bound that is no NaN; NaN stays NaN. One instruction."""
    return _at_least(x, bound)


@formula
def at_most(x: Value, bound: Value) -> Value:
    """min(x, bound) for a bound that is no NaN; NaN stays NaN. One instruction."""
    return _at_most(x, bound)


@formula
def maximum(a: Value, b: Value) -> Value:
    """The larger of both; NaN wins."""
    return _maximum(a, b)


@formula
def minimum(a: Value, b: Value) -> Value:
    """The smaller of both; NaN wins."""
    return _minimum(a, b)


@formula
def sqrt(x: Value) -> Value:
    """The square root, correctly rounded; NaN below 0."""
    return square_root(x)


@formula
def exp(x: Value) -> Value:
    """exp(x), within 2 units in the last place; overflows to inf, and underflows gradually to 0.

    Source: range reduction of W. J. Cody, W. Waite (1980), Software manual for the elementary functions, chapter 6.
    """
    return _exp(x)


@formula
def expm1(x: Value) -> Value:
    """exp(x) - 1, within 2 units in the last place, also near 0. Overflows to inf. expm1(-0) is +0."""
    return _expm1(x)


@formula
def log(x: Value) -> Value:
    """The natural logarithm, within 2 units in the last place; -inf at 0, NaN below.

    Source: fdlibm (Sun Microsystems, 1993), e_log.c and e_logf.c.
    """
    return _log(x)


@formula
def log1p(x: Value) -> Value:
    """log(1 + x), within 2 units in the last place, also near 0; -inf at -1, NaN below. log1p(-0) is +0.

    Source: fdlibm (Sun Microsystems, 1993), s_log1p.c.
    """
    return _log1p(x)


@formula
def tanh(x: Value) -> Value:
    """tanh(x) = (e - 1) / (e + 1) with e = exp(2 x), from e - 1, within 3 units in the last place, also near 0."""
    return _tanh(x)


@formula
def sinh(x: Value) -> Value:
    """(exp(x) - exp(-x)) / 2, within 4 units in the last place, also near 0 and where exp(x) overflows."""
    return _sinh(x)


@formula
def cosh(x: Value) -> Value:
    """(exp(x) + exp(-x)) / 2, within 4 units in the last place, also where exp(x) overflows."""
    return _cosh(x)


@formula
def sin(x: Value) -> Value:
    """sin(x) for |x| <= 10,000 (float32) or 1,000,000 (float64), with an error of at most eps; wrong beyond.

    sin(-0) is +0.

    Source: S. Moshier (1989), Cephes, sinf.c; fdlibm (Sun Microsystems, 1993), k_sin.c and k_cos.c.
    """
    return _sine(x, 0)


@formula
def cos(x: Value) -> Value:
    """cos(x), for the numbers and with the error of `sin`."""
    return _sine(x, 1)


@intrinsic
def within_reach(typing_context: Any, size: Any) -> Any:
    """True if `sin` and `cos` hold for numbers of this size; False for NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = Value(builder, args[0])
        return (value <= value.of(*REACH)).value

    return types.boolean(size), generate


@formula
def arctan(x: Value) -> Value:
    """The inverse tangent, within 3 units in the last place.

    Source: S. Moshier (1989), Methods and programs for mathematical functions (Cephes), atanf.c and atan.c.
    """
    return _arctan(x)


@formula
def hypot(a: Value, b: Value) -> Value:
    """sqrt(a^2 + b^2), within 3 units in the last place, without overflow of the squares; inf wins over NaN."""
    return _hypot(a, b)
