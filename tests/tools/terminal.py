"""A terminal that programs are run in and that is read like a screen: a pty, and the little that `rich` asks of it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from codecs import getincrementaldecoder
from pathlib import Path

SEQUENCE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])")


class Screen:
    """What was written, as a terminal of `width` shows it: lines of characters, each with its colours; the cursor."""

    def __init__(self, width: int):
        self.width, self.row, self.column = width, 0, 0
        self.lines: list[list[tuple[str, str]]] = [[]]  # what sets the colours, and a character
        self.style, self.colours = "", set[str]()
        self.hidden = False  # the cursor

    def feed(self, text: str) -> None:
        while text:
            if found := SEQUENCE.match(text):
                self.obey(found[1], found[2])
                text = text[found.end() :]
                continue
            character, text = text[0], text[1:]
            if character == "\r":
                self.column = 0
            elif character == "\n":
                self.row += 1
                self.lines += [[] for _ in range(self.row + 1 - len(self.lines))]
            else:
                assert character >= " ", f"a terminal is told {character!r}"
                if self.column == self.width:
                    self.feed("\r\n")
                line = self.lines[self.row]
                line += [("", " ")] * (self.column + 1 - len(line))
                line[self.column] = (self.style, character)
                self.column += 1

    def obey(self, numbers: str, letter: str) -> None:
        if letter == "m":
            self.style = "" if numbers in ("", "0") else f"{self.style}\x1b[{numbers}m"
            self.colours |= {number for number in numbers.split(";") if 30 <= int(number or 0) < 108}
        elif letter == "A":
            self.row = max(self.row - int(numbers or 1), 0)
        elif letter == "K" and numbers == "2":
            self.lines[self.row] = []
        elif letter in "hl" and numbers == "?25":
            self.hidden = letter == "l"
        else:
            raise AssertionError(f"a sequence that this terminal does not know: {numbers}{letter}")

    def text(self) -> list[str]:
        """The lines as they stand, without empty ones at the end."""
        lines = ["".join(character for _, character in line).rstrip() for line in self.lines]
        return "\n".join(lines).rstrip().split("\n")

    def coloured(self) -> str:
        """The same with their colours."""
        lines = self.lines[: len(self.text())]
        return "\n".join("".join(f"{style}{char}\x1b[0m" for style, char in line) for line in lines)


class Terminal:
    """A program that runs in a terminal."""

    def __init__(self, command: list[str], width: int, environment: dict[str, str], folder: Path | None = None):
        self.own, other = pty.openpty()
        self.resize(width)
        self.screen, self.written, self.decoder = Screen(width), "", getincrementaldecoder("utf-8")()
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, cwd=folder, env={"TERM": "xterm-256color", **environment}
        )
        os.close(other)

    def resize(self, width: int) -> None:
        fcntl.ioctl(self.own, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def read(self, until: str = "") -> str:
        """Read until something was written, or to the end; all that was written."""
        while not until or until not in self.written:
            try:
                self.written += self.decoder.decode(os.read(self.own, 65536))
            except OSError:  # the end, as Linux tells it
                break
        return self.written

    def ended(self) -> int:
        """Its exit status; the screen then shows all that was written."""
        self.screen.feed(self.read())
        return self.process.wait()
