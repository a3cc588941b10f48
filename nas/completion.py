"""``eval "$(python -m nas.completion)"``: the TAB key completes groups, choices and keys in bash."""

from __future__ import annotations

import sys

from nas.help import completions

# Bash takes `=` for a break between words; here GROUP=CHOICE is one.
_BASH = """\
# For bash:  eval "$(python -m nas.completion)"  and the TAB key completes groups, choices and keys.
_mobilenet_nas() {
    local line=${COMP_LINE:0:COMP_POINT} module
    [[ $line =~ -m\\ +nas\\.([a-z_]+)\\ +(.*)$ ]] || return 0
    module=${BASH_REMATCH[1]}
    local words=(${BASH_REMATCH[2]})
    [[ $line == *' ' ]] && words+=('')
    mapfile -t COMPREPLY < <("$1" -m nas.completion "$module" "${words[@]}" 2>/dev/null)
    local last=${words[${#words[@]}-1]} cut=${COMP_WORDS[COMP_CWORD]}
    [[ $cut == '=' ]] && cut=
    COMPREPLY=("${COMPREPLY[@]#"${last%"$cut"}"}")
}
complete -o nospace -o default -F _mobilenet_nas python python3
"""


def main(arguments: list[str]) -> None:
    """Print the function for bash, or what the last of some words can become."""
    asks_how = not arguments or arguments[0] in ("-h", "--help")
    print(_BASH if asks_how else "\n".join(completions(arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
