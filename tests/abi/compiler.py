"""What a C compiler says of lines of C."""

import subprocess

from requirements import need


def answers(tmp_path, head, calls):
    """The lines that a program prints: `head` before main, the printf arguments `calls` within it."""
    compiler = need("cc")
    body = [f"printf({call});" for call in calls]
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    head = ["#include <stdio.h>", "#include <stddef.h>", *head]
    source.write_text("\n".join([*head, "int main(void) {", *body, "return 0; }", ""]))
    subprocess.run([compiler, "-o", str(program), str(source)], check=True)
    return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()
