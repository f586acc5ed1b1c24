// Functions of sixteen floats that several families share: exponential, softplus, tanh, gates.

// exp(x) = 2^n * (1 + r + r^2 q(r)), n = round(x / ln 2), |r| <= ln2/2. Under 2 ulp (q alone errs by 3e-9).
// Below -104 the result is 0 (half the least subnormal), above 88.73 infinity; NaN stays NaN.
// Our own, because libm's differs by machine and has no sixteen-lane form.
OP F fexp(F x) {
  x = fmin(fset(89.0f), fmax(fset(-104.5f), x));             // these return their second argument for NaN
  const F n = fround(mul(x, fset(1.44269504f)));
  F r = fnma(n, fset(0.693359375f), x);                      // ten bits of ln 2: n * this is exact without FMA too
  r = fnma(n, fset(-2.12194440e-4f), r);
  F q = fset(1.381455804e-3f);                               // minimax fit of (e^r - 1 - r) / r^2
  q = fma(q, r, fset(8.368736133e-3f));
  q = fma(q, r, fset(4.166838899e-2f));
  q = fma(q, r, fset(0.1666652113f));
  q = fma(q, r, fset(0.4999999404f));
  return scale_exp(add(fma(mul(r, r), q, r), fset(1.0f)), to_int(n));
}

// tanh to about 2 ulp: an odd polynomial near 0, where 1 - 2/(e^2x + 1) would cancel.
OP F ftanh(F x) {
  const F z = mul(x, x);
  F p = fset(-5.717036314e-3f);
  p = fma(p, z, fset(2.065057866e-2f));
  p = fma(p, z, fset(-5.374349654e-2f));
  p = fma(p, z, fset(0.1333149076f));
  p = fma(p, z, fset(-0.3333328366f));
  const F small = fma(mul(x, z), p, x);
  const F a = fabs(x);
  const F t = sub(fset(1.0f), div(fset(2.0f), add(fexp(add(a, a)), fset(1.0f))));
  const F large = select_lt(x, fzero(), sub(fzero(), t), t);
  return select_lt(a, fset(0.625f), small, large);
}

// x * sigmoid(z). One division, and no cancellation on the negative side.
OP F fswish(F x, F z) { return div(x, add(fset(1.0f), fexp(sub(fzero(), z)))); }

OP F fsilu(F x) { return fswish(x, x); }

// 0.5 (1 + tanh u) = sigmoid(2u), with u = sqrt(2/pi) (x + 0.044715 x^3).
OP F fgelu(F x) {
  const F cubic = fma(mul(mul(x, x), fset(0.044715f)), x, x);
  return fswish(x, mul(cubic, fset(1.59576912f)));
}

// log1p(u) = 2 atanh(s), s = u / (2 + u) <= 1/3 for u in [0, 1]: s + s z P(z), z = s^2; the series' next term is below 2^-27.
OP F flog1p_unit(F u) {
  const F s = div(u, add(fset(2.0f), u)), z = mul(s, s);
  F p = fset(1.0f / 15.0f);
  p = fma(p, z, fset(1.0f / 13.0f));
  p = fma(p, z, fset(1.0f / 11.0f));
  p = fma(p, z, fset(1.0f / 9.0f));
  p = fma(p, z, fset(1.0f / 7.0f));
  p = fma(p, z, fset(0.2f));
  p = fma(p, z, fset(1.0f / 3.0f));
  const F sum = fma(mul(s, z), p, s);
  return add(sum, sum);
}
// log(1 + e^x) = max(x, 0) + log1p(e^-|x|): no overflow, and small results keep their relative precision. NaN stays NaN.
OP F fsoftplus(F x) { return add(fmax(fzero(), x), flog1p_unit(fexp(sub(fzero(), fabs(x))))); }

// 2^t for t <= 0, and 0 below -150. NaN stays NaN. r in [-1/2, 1/2]; the polynomial errs by 9e-8, three quarters of an ulp.
OP F fexp2(F t) {
  t = fmax(fset(-151.0f), t);                                // returns its second argument for NaN
  const F n = fround(t), r = sub(t, n);
  F p = fset(1.326472731e-3f);                               // minimax fit of (2^r - 1) / r
  p = fma(p, r, fset(9.671512991e-3f));
  p = fma(p, r, fset(5.550733581e-2f));
  p = fma(p, r, fset(0.2402224243f));
  p = fma(p, r, fset(0.6931470037f));
  return scale_exp(fma(p, r, fset(1.0f)), n);
}
