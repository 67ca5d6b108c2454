"""Code as the pages show it."""
import re


def blocks(page: str, language: str) -> list[str]: return re.findall(rf"```{language}\n(.*?)```", page, re.S)


def shorter(text: str, *changes: tuple[str, str]) -> str:
    "The lines with smaller pictures or nets and fewer epochs; each change must have something to change"
    for a, b in changes:
        assert a in text
        text = text.replace(a, b)
    return text
