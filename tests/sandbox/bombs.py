"""Templates whose work hides inside one operation of Python's, where no clock of Jinja's ticks."""

from __future__ import annotations

_FORTY = "{% for i in range(40) %}"
_END = "{% endfor %}"
# Two values whose parts are shared: forty levels, and as many leaves as 2 to the 40th.
LISTS = (
    "{% set n = namespace(a=[1], b=[1]) %}"
    + _FORTY
    + "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}"
    + _END
)
TUPLES = (
    "{% set n = namespace(a=(1,), b=(1,)) %}"
    + _FORTY
    + "{% set n.a = (n.a, n.a) %}{% set n.b = (n.b, n.b) %}"
    + _END
)
DICTS = (
    "{% set n = namespace(a={'x': 1}, b={'x': 1}) %}"
    + _FORTY
    + "{% set n.a = {'x': n.a, 'y': n.a} %}{% set n.b = {'x': n.b, 'y': n.b} %}"
    + _END
)
LONG = "{% set s = 'a' * 15000000 %}{% set t = s[1:] ~ 'a' %}"
KEEP = "{% set n = namespace(a=[]) %}{% for i in range(99999) %}{% for j in range(99999) %}"
_ENDS = _END + _END

# Those that were reported.
REPORTED = {
    "equal lists": LISTS + "{{ n.a == n.b }}",
    "hashed tuples": TUPLES + "{{ {n.a: 1} | length }}",
    "sum of lists": "{{ ([[0] * 1000] * 1000000) | sum(start=[]) | length }}",
    "wordwrap": "{{ ('a ' * 7000000) | wordwrap(1) }}",
    "title": "{% set n = namespace(s='a ' * 7900000) %}{% for i in range(9) %}{% set n.t = n.s | title %}"
    + _END,
    "batch": "{{ ([[0]] * 1000000) | map('batch', 1000000, 0) | map('list') | list | length }}",
    "time of a gigabyte": "{{ strftime_now('%200d' * 3000000) | length }}",
}

MORE = {
    "unequal lists": LISTS + "{{ n.a != n.b }}",
    "lesser lists": LISTS + "{{ n.a < n.b }}",
    "equal lists in a condition": LISTS + "{% if n.a == n.b %}x{% endif %}",
    "list in a list": LISTS + "{{ n.a in [n.b] }}",
    "index of a list": LISTS + "{{ [n.b].index(n.a) }}",
    "count of a list": LISTS + "{{ [n.b].count(n.a) }}",
    "equality test": LISTS + "{{ n.a is eq n.b }}",
    "selected by equality": LISTS + "{{ [n.a] | select('equalto', n.b) | list | length }}",
    "rejected by an attribute": LISTS
    + "{{ [{'x': n.a}] | rejectattr('x', 'equalto', n.b) | list | length }}",
    "greatest of lists": LISTS + "{{ [n.a, n.b] | max | length }}",
    "least of lists": LISTS + "{{ [n.a, n.b] | min | length }}",
    "sorted lists": LISTS + "{{ [n.a, n.b] | sort | length }}",
    "grouped lists": LISTS + "{{ [{'x': n.a}, {'x': n.b}] | groupby('x') | length }}",
    "loop that looks for changes": LISTS
    + "{% for i in [0, 1] %}{% if loop.changed(n.a if i else n.b) %}{% endif %}{% endfor %}",
    "equal tuples": TUPLES + "{{ n.a == n.b }}",
    "tuple as a member": TUPLES + "{{ n.a in {1: 1} }}",
    "tuple as a key that is got": TUPLES + "{{ {}.get(n.a) }}",
    "tuple as a key of pairs": TUPLES + "{{ dict([(n.a, 1)]) | length }}",
    "tuples as keys": TUPLES + "{{ dict.fromkeys([n.a]) | length }}",
    "unique tuples": TUPLES + "{{ [n.a, n.b] | unique | list | length }}",
    "equal dictionaries": DICTS + "{{ n.a == n.b }}",
    "dictionary sorted by values": LISTS + "{{ {'a': n.a, 'b': n.b} | dictsort(by='value') | length }}",
    "sum of tuples": "{{ ([(0,) * 1000] * 1000000) | sum(start=()) | length }}",
    "searched from the right": LONG + "{{ s.rfind('ab' ~ s[:7000000]) }}",
    "split from the right": LONG + "{{ s.rsplit('ab' ~ s[:7000000]) | length }}",
    "parted from the right": LONG + "{{ s.rpartition('ab' ~ s[:7000000]) | length }}",
    "long string in a long list": LONG + "{{ s in [t[1:] ~ 'b'] * 1000000 }}",
    "long strings sorted": LONG + "{{ ([s, t] * 500000) | sort(case_sensitive=true) | length }}",
    "long strings sorted without case": LONG + "{{ ([s] * 1000000) | sort | length }}",
    "greatest of long strings": LONG + "{{ ([s, t] * 500000) | max(case_sensitive=true) | length }}",
    "unique long strings": LONG + "{{ ([s] * 1000000) | unique | list | length }}",
    "equal lists of long strings": LONG + "{{ ([s] * 1000000) == ([t] * 1000000) }}",
    "searched for each": "{{ range(99999) | select('in', [-1] * 1000000) | list | length }}",
    "long path for each": "{% set n = namespace(a=1) %}{% for i in range(400) %}{% set n.a = [n.a] %}{% endfor %}"
    "{{ ([n.a] * 1000000) | map(attribute='0.' * 300 ~ '0') | list | length }}",
    "sorted by many attributes": "{{ ([[0]] * 1000000) | sort(attribute=('0,' * 100000) ~ '0') | length }}",
    "format that repeats": "{{ ('{0}' * 100000).format('x' * 1000000) | length }}",
    "format by name that repeats": "{{ ('%(a)s' * 100000 % {'a': 'x' * 1000000}) | length }}",
    "format filter that repeats": "{{ ('%(a)s' * 100000) | format(a='x' * 1000000) | length }}",
    "deep json with indents": "{% set n = namespace(a=[0] * 500000) %}{% for i in range(400) %}{% set n.a = [n.a] %}"
    "{% endfor %}{{ n.a | tojson(indent=64) | length }}",
    "json with long separators": "{{ ([0] * 1000000) | tojson(separators=('x' * 1000000, ':')) | length }}",
    "time by a long format": "{{ strftime_now('%c%x%A' * 2500000) | length }}",
    "kept strings": KEEP + "{% set n.a = [n.a, ('x' * 1000000) ~ j] %}" + _ENDS,
    "kept lists": KEEP + "{% set n.a = [n.a, [i] * 1000000] %}" + _ENDS,
    "kept ranges": "{{ ([range(99999)] * 1000000) | map('list') | list | length }}",
    "kept words": KEEP + "{% set n.a = [n.a, ('ab ' * 300000).split()] %}" + _ENDS,
    "wrapped while it compiles": "{% set x = ('a' * 9000000) | wordwrap(1) %}",
    "printed prettily": "{{ ([[1, 2, 3]] * 900000) | pprint | length }}",
}

BOMBS = REPORTED | MORE
