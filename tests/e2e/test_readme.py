"""The README's tour runs as it is printed."""

import re
import subprocess
import sys

from holdfast import clean_environment

MARKER = "<!-- e2e: tour -->"


def snippet(readme):
    """The Python block that follows the marker."""
    assert MARKER in readme, f"README.md has no marker {MARKER}"
    block = re.match(r"\s*```python\n(.*?)^```$", readme.split(MARKER, 1)[1], re.DOTALL | re.MULTILINE)
    assert block, f"no Python block follows {MARKER}"
    return block.group(1)


def test_the_tour_of_the_readme_works(pool, repository, tmp_path):
    program = tmp_path / "tour.py"
    program.write_text(snippet((repository / "README.md").read_text()))
    done = subprocess.run(
        # As a reader does it: the exports by eval, then the program.
        ["bash", "-c", 'eval "$("$0" env --data "$1")" && exec "$2" "$3"', pool.program, str(pool.data)]
        + [sys.executable, str(program)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean_environment(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.strip(), "the tour prints nothing"
