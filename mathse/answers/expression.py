"""A mathematical expression as a tree: read whole, every character of it, or not at all.

A tree is a tuple: ("number", Fraction), ("name", "x_1"), (operator, tree, …) with the operators + * / ^ neg !
abs root choose log degrees and the functions. Numbers are exact: 0.5 is 1/2. So most values are compared as
fractions here, and only the rest needs math-verify, which gets it in an unambiguous spelling (latex()).
"""

import re
from fractions import Fraction

DIGITS = 60  # digits of a number that is read
DEPTH = 30  # brackets within brackets

# digits, with commas, apostrophes or blanks between thousands; also 1,00,000
INTEGER = (
    r"(?:[1-9]\d{{0,2}}(?:(?P<{0}>[, '])\d{{3}})(?:(?P={0})\d{{3}})*(?!\d)"
    r"|[1-9]\d?(?:,\d\d)+,\d{{3}}(?!\d)|\d+)"
)
GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega"
)
GREEK_LETTERS = dict(zip("αβγδεζηθικλμνξρστφχψω", GREEK.split()))
FUNCTIONS = {"sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "ln", "exp"}
FUNCTION_WORDS = FUNCTIONS | {"log", "lg", "sqrt", "abs", "frac", "binom", "cbrt"}
ENGLISH = set("is in of to at by on or an as be do go he if it me my no so up us we am ok oh ah hm".split())
TOKEN = re.compile(
    rf" *(?:(?P<decimal>{INTEGER.format('s1')}?\.(?:\d*\\overline ?\{{\d+\}}|\d*\(\d+\)|\d+(?:\.\.\.|…)?))"
    rf"|(?P<integer>{INTEGER.format('s2')})\.?(?!\d)"
    r"|\\?(?P<word>[A-Za-z]{2,}(?![a-z]))|(?P<letter>[A-Za-zα-ωΔ]'*)|(?P<sign>[-+*/^!|(){}\[\]_√∛∜π∞°]))"
)
PLAIN_NUMBER = re.compile(r"(-?)(\d{1,15})(?:\.(\d{1,15}))?")
Tree = tuple


class Unreadable(ValueError):
    """Raised for what is not read whole."""


def scan(text: str) -> list[tuple[str, str, bool]]:
    """[(kind, text, whether a blank stands before)] of a whole text."""
    tokens, at = [], 0
    text = text.strip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise Unreadable(text[at:])
        kind = next(name for name in ("decimal", "integer", "word", "letter", "sign") if match[name])
        token, spaced = match[kind], text[at] == " "
        if kind == "word" and token not in FUNCTION_WORDS:
            if len(token) > 2 or token.istitle() or token.lower() in ENGLISH:  # no product
                raise Unreadable(token)
            tokens += [("letter", token[0], spaced), ("letter", token[1], False)]
        else:
            tokens.append((kind, token, spaced))
        at = match.end()
    return tokens


def decimal_value(text: str) -> Fraction:
    """1,234.5; repeating ones as 0.1(6), 0.1\\overline {6} or 0.333... (three dots repeat the last digit)."""
    whole, _, after = re.sub(r"[, ']|\\overline", "", text).partition(".")
    fixed, _, repeated = re.sub(r"[{(]", "|", after).strip("})").partition("|")
    if fixed.endswith((".", "…")):
        fixed = fixed.rstrip(".…")
        if len(fixed) < 2 or fixed[-1] != fixed[-2]:  # 3.14… goes on somehow
            raise Unreadable(text)
        fixed, repeated = fixed[:-1], fixed[-1]
    value = Fraction(int(whole + fixed or "0"), 10 ** len(fixed))
    if repeated:
        value += Fraction(int(repeated), 10 ** len(fixed) * (10 ** len(repeated) - 1))
    return value


class Reader:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str):
        if sum(map(str.isdigit, text)) > 4 * DIGITS:
            raise Unreadable(text)
        self.tokens, self.at, self.depth = scan(text), 0, 0

    def peek(self, ahead: int = 0) -> tuple[str, str, bool]:
        place = self.at + ahead
        return self.tokens[place] if place < len(self.tokens) else ("end", "", False)

    def take(self, sign: str) -> bool:
        """Step over a sign if it stands here."""
        found = self.peek()[:2] == ("sign", sign)
        self.at += found
        return found

    def need(self, sign: str) -> None:
        if not self.take(sign):
            raise Unreadable(sign)

    def whole(self) -> Tree:
        tree = self.sum()
        if self.at < len(self.tokens):
            raise Unreadable(self.peek()[1])
        return tree

    def sum(self) -> Tree:
        self.depth += 1
        if self.depth > DEPTH:
            raise Unreadable("too deep")
        tree = self.product()
        while self.peek()[1] in ("+", "-"):
            minus = self.take("-") or not self.take("+")
            term = self.product()
            tree = ("+", tree, ("neg", term) if minus else term)
        self.depth -= 1
        return tree

    def product(self) -> Tree:
        tree = self.signed()
        while True:
            if self.take("*"):
                tree = ("*", tree, self.signed())
            elif self.take("/"):
                tree = ("/", tree, self.signed())
            elif self.starts_factor():
                tree = ("*", tree, self.power())
            else:
                return tree

    def starts_factor(self) -> bool:
        """Whether a factor follows without a sign: 2x, 3√2, (x+1)(x-1); never a number behind a number."""
        kind, text, spaced = self.peek()
        if kind in ("integer", "decimal"):
            before = self.tokens[self.at - 1]
            if before[1] not in (")", "}", "]", "!"):
                raise Unreadable(text)
            return True
        if text == "(" and spaced and self.tokens[self.at - 1][0] in ("integer", "decimal"):
            raise Unreadable("12 (12) is one answer said twice, no product")
        return kind in ("letter", "word") or text in ("(", "{", "√", "∛", "∜", "π", "∞")

    def signed(self) -> Tree:
        if self.take("-"):
            return ("neg", self.signed())
        self.take("+")
        return self.power()

    def power(self) -> Tree:
        base = self.postfix()
        if self.take("^"):
            exponent = self.exponent()
            return ("degrees", base) if exponent == "°" else ("^", base, exponent)
        return base

    def exponent(self) -> Tree:
        if self.take("{"):
            tree = self.sum()
            self.need("}")
            return tree
        return ("neg", self.postfix()) if self.take("-") else self.postfix()

    def postfix(self) -> Tree:
        tree = self.atom()
        while True:
            if self.take("!"):
                tree = ("!", tree)
            elif self.take("°"):
                tree = ("degrees", tree)
            else:
                return tree

    def group(self, close: str) -> Tree:
        tree = self.sum()
        self.need(close)
        return tree

    def atom(self) -> Tree:
        kind, text, _ = self.peek()
        self.at += 1
        if kind == "integer":
            return self.mixed(Fraction(re.sub(r"[, ']", "", text)))
        if kind == "decimal":
            return ("number", decimal_value(text))
        if kind == "letter":
            return ("name", text + self.index())
        if kind == "word":
            return self.function(text)
        if text in ("(", "[", "{"):
            return self.group({"(": ")", "[": "]", "{": "}"}[text])
        if text == "|":
            return ("abs", self.group("|"))
        if text in ("π", "∞"):
            return ("name", text)
        if text in ("√", "∛", "∜"):
            return ("root", self.degree() if text == "√" else "∛∜".index(text) + 3, self.argument())
        raise Unreadable(text)

    def index(self) -> str:
        """A subscript, as in x_1 or x_{12}."""
        if not self.take("_"):
            return ""
        braced = self.take("{")
        kind, text, _ = self.peek()
        if kind not in ("integer", "letter"):
            raise Unreadable(text)
        self.at += 1
        if braced:
            self.need("}")
        return f"_{text}"

    def mixed(self, whole: Fraction) -> Tree:
        """An integer, or the mixed number that begins with it: 2\\frac{3}{4}, 2 3/4. (101_2 is none.)"""
        if self.peek()[1] == "_":
            raise Unreadable("a number in another base")
        numerals = [self.peek(ahead)[:2] for ahead in range(8)]
        texts = "".join(text for _, text in numerals)
        kinds = [kind for kind, _ in numerals]
        part = None
        if self.peek()[1] == "frac" and (match := re.match(r"frac\{(\d+)\}\{(\d+)\}", texts)):
            part, used = match, 7
        elif (
            self.peek()[1] == "frac"
            and kinds[1] == "integer"
            and (match := re.match(r"frac(\d)(\d)(?!\d)", texts))
        ):
            part, used = match, 2
        elif self.peek()[2] and kinds[0] == kinds[2] == "integer" and texts.startswith(f"{numerals[0][1]}/"):
            part, used = re.match(r"(\d+)/(\d+)", texts), 3
        if not part or not int(part[2]) or int(part[1]) >= int(part[2]):
            return ("number", whole)
        self.at += used
        return ("number", whole + Fraction(int(part[1]), int(part[2])))

    def degree(self) -> int:
        """The 3 of \\sqrt[3]{2}."""
        if not self.take("["):
            return 2
        kind, text, _ = self.peek()
        self.at += 1
        self.need("]")
        if kind != "integer" or not 2 <= int(text) <= 20:
            raise Unreadable(text)
        return int(text)

    def argument(self) -> Tree:
        """What a root or a fraction is of: a group, or one digit or letter (with its power outside)."""
        kind, text, _ = self.peek()
        if kind == "integer" or text in ("(", "{", "π") or kind == "letter":
            return self.atom() if kind != "integer" else self.number()
        raise Unreadable(text)

    def number(self) -> Tree:
        text = self.peek()[1]
        self.at += 1
        return ("number", Fraction(re.sub(r"[, ']", "", text)))

    def function(self, name: str) -> Tree:
        if name == "frac":
            return self.fraction("/")
        if name == "binom":
            return self.fraction("choose")
        if name in ("sqrt", "cbrt"):
            return ("root", 3 if name == "cbrt" else self.degree(), self.argument())
        if name == "abs":
            return ("abs", self.argument())
        base = ("number", Fraction(10))
        if name == "log" and self.take("_"):
            base = self.exponent()
        power = self.exponent() if self.take("^") else None
        if power == ("neg", ("number", 1)) and f"arc{name}" in FUNCTIONS:
            name, power = f"arc{name}", None
        of = self.signed_product()
        tree = ("log", base, of) if name in ("log", "lg") else (name, of)
        return ("^", tree, power) if power else tree

    def signed_product(self) -> Tree:
        """The argument of a function without brackets: 2x, 60°, π/6; with brackets only these."""
        if self.peek()[1] in ("(", "{"):
            return self.postfix()
        if self.take("-"):
            return ("neg", self.signed_product())
        tree = self.power()
        while self.peek()[0] == "letter" or self.peek()[1] in ("π", "√"):
            tree = ("*", tree, self.power())
        if self.peek()[1] == "/" and "π" in names_of(tree):
            self.at += 1
            tree = ("/", tree, self.power())
        return tree

    def fraction(self, operator: str) -> Tree:
        """\\frac{1}{2}, \\frac12, \\frac{1}2, \\binom{5}{2}."""
        kind, text, _ = self.peek()
        if kind == "integer" and len(text) >= 2 and self.peek(1)[1] != "{":
            if len(text) != 2:
                raise Unreadable(text)
            self.at += 1
            return (operator, ("number", Fraction(text[0])), ("number", Fraction(text[1])))
        return (operator, self.argument(), self.argument())


def read_expression(text: str) -> Tree:
    """The tree of a whole text. Raises Unreadable."""
    if match := PLAIN_NUMBER.fullmatch(text):  # most answers
        value = Fraction(int(match[2] + (match[3] or "")), 10 ** len(match[3] or ""))
        return ("number", -value if match[1] else value)
    return Reader(text).whole()


def names_of(tree: Tree) -> set[str]:
    """The names in a tree, π among them."""
    if tree[0] == "name":
        return {tree[1]}
    return set().union(*(names_of(part) for part in tree[1:] if isinstance(part, tuple)))


def variables_of(tree: Tree) -> set[str]:
    return names_of(tree) - {"π", "e", "∞", "i"}
