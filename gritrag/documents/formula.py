"""Formulas of Office files (OMML: ECMA-376, part 1, section 22.1) in one line, such as ``x=(-b±√(b^2-4ac))/2a``."""

from lxml import etree

NAMESPACE = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
FORMULA = f"{NAMESPACE}oMath"
SCRIPTS = {"sub": "_", "sup": "^", "lim": "_"}
"""What stands below and above something, and how that is written."""


def in_line(formula: etree._Element) -> str:
    """The text of a formula, or of a part of one, as people type it."""
    tag = formula.tag if isinstance(formula.tag, str) else ""
    kind = tag.removeprefix(NAMESPACE)
    if kind == tag:
        return ""
    if kind == "t":
        return formula.text or ""
    parts = [(str(part.tag).removeprefix(NAMESPACE), in_line(part)) for part in formula]
    by_kind = dict(parts)
    if kind == "f":
        return f"{_grouped(by_kind.get('num', ''))}/{_grouped(by_kind.get('den', ''))}"
    if kind == "rad":
        return f"{by_kind.get('deg', '')}√{_grouped(by_kind.get('e', ''))}"
    if kind == "nary":
        scripts = "".join(SCRIPTS[name] + _grouped(text) for name, text in parts if name in SCRIPTS and text)
        return f"{_property(formula, 'chr', '∫')}{scripts} {by_kind.get('e', '')}"
    if kind == "d":
        inside = _property(formula, "sepChr", "|").join(text for name, text in parts if name == "e")
        return f"{_property(formula, 'begChr', '(')}{inside}{_property(formula, 'endChr', ')')}"
    if kind == "func":
        return f"{by_kind.get('fName', '')} {by_kind.get('e', '')}"
    if kind == "m":
        return f"[{'; '.join(text for name, text in parts if name == 'mr')}]"
    if kind == "mr":
        return ", ".join(text for name, text in parts if name == "e")
    above = "^" if kind == "limUpp" else "_"
    return "".join(
        (above if name == "lim" else SCRIPTS[name]) + _grouped(text) if name in SCRIPTS and text else text
        for name, text in parts
    )


def _grouped(text: str) -> str:
    return text if text.isalnum() else f"({text})"


def _property(formula: etree._Element, name: str, default: str) -> str:
    """A sign that the formula names; one that is named without a value is none."""
    found = formula.find(f"*/{NAMESPACE}{name}")
    return default if found is None else found.get(f"{NAMESPACE}val", "")
