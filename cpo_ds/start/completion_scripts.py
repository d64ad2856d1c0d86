"""Scripts by which shells complete the words of `cpo-ds`.

Each holds the same table: the words after a command, and the values of its options. A word that is
in no table may be a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Table = Mapping[str, Sequence[str]]

# Functions of bash and zsh alike. A command may have two words, like `prepare select`.
_TABLES = """\
_cpo_ds_after() {
  case "$1" in
%(after)s
  esac
}
_cpo_ds_values() {
  case "$1" in
%(values)s
  esac
}
# Sets `command` to the longest command that the line begins with.
_cpo_ds_command() {
  command=""
  local word
  for word in "$@"; do
    case " $(_cpo_ds_after "$command") " in
      *" $word "*) case "$word" in -*) return ;; *) ;; esac ;;
      *) return ;;
    esac
    if [ -z "$(_cpo_ds_after "${command:+$command }$word")" ]; then return; fi
    command="${command:+$command }$word"
  done
}
"""
_BASH = """\
_cpo_ds() {
  local command current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}"
  _cpo_ds_command "${COMP_WORDS[@]:1:COMP_CWORD-1}"
  local words="$(_cpo_ds_values "$command $previous")"
  case "$previous" in -*) ;; *) words="$(_cpo_ds_after "$command")" ;; esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _cpo_ds cpo-ds
"""
_ZSH = """\
_cpo_ds() {
  local command current="${words[CURRENT]}" previous="${words[CURRENT-1]}" listed
  _cpo_ds_command "${(@)words[2,CURRENT-1]}"
  listed="$(_cpo_ds_values "$command $previous")"
  case "$previous" in -*) ;; *) listed="$(_cpo_ds_after "$command")" ;; esac
  if [[ -n "$listed" ]]; then compadd -- ${=listed}; fi
  if [[ "$current" != -* ]]; then _files; fi
}
compdef _cpo_ds cpo-ds
"""
_FISH = """\
function __cpo_ds_after
  switch "$argv[1]"
%(after)s
  end
end
function __cpo_ds_values
  switch "$argv[1]"
%(values)s
  end
end
function __cpo_ds_words
  set -l typed (commandline -opc)[2..-1]
  set -l command ""
  for word in $typed
    string match -q -- "-*" $word; and break
    contains -- $word (__cpo_ds_after "$command"); or break
    set -l longer (string trim "$command $word")
    test (count (__cpo_ds_after "$longer")) -gt 0; or break
    set command "$longer"
  end
  if test (count $typed) -gt 0; and string match -q -- "-*" $typed[-1]
    __cpo_ds_values "$command $typed[-1]"
  else
    __cpo_ds_after "$command"
  end
end
complete -c cpo-ds -a "(__cpo_ds_words)"
"""


def bash(after: Table, values: Table) -> str:
    """The script for bash: tables of words after commands, and of values after their options."""
    return _shell_tables(after, values) + _BASH


def zsh(after: Table, values: Table) -> str:
    """The script for zsh, which begins as that of bash."""
    return _shell_tables(after, values) + _ZSH


def fish(after: Table, values: Table) -> str:
    """The script for fish."""
    return _FISH % {"after": _switch(after), "values": _switch(values)}


def _shell_tables(after: Table, values: Table) -> str:
    return _TABLES % {"after": _cases(after), "values": _cases(values)}


def _by_words(table: Table) -> dict[str, list[str]]:
    """The keys of a table by their words, so that equal words are written once."""
    keys: dict[str, list[str]] = {}
    for key, words in table.items():
        keys.setdefault(" ".join(words), []).append(key)
    return keys


def _cases(table: Table) -> str:
    lines = []
    for words, keys in _by_words(table).items():
        patterns = "|".join(f'"{key}"' for key in keys)
        lines.append(f"    {patterns}) echo '{words}' ;;")
    return "\n".join(lines)


def _switch(table: Table) -> str:
    lines = []
    for words, keys in _by_words(table).items():
        patterns = " ".join(f"'{key}'" for key in keys)
        lines.append(f"    case {patterns}\n      string split ' ' -- '{words}'")
    return "\n".join(lines)
