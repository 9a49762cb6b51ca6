# SPDX-License-Identifier: Apache-2.0
"""The shells' side: each asks the very program that stands on its command line, by `completion --words`.

The answer's first line is files, folders or nothing; then a line for each word: word, tab, meaning.
"""

BASH = """\
# bash completion of ota. To have it: eval "$(scripts/ota completion bash)", in ~/.bashrc with the whole path.
_ota() {
    local current=${COMP_WORDS[COMP_CWORD]} program=${COMP_WORDS[0]/#\\~/$HOME} kind='' word
    local -a answer=()
    COMPREPLY=()
    mapfile -t answer < <("$program" completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    kind=${answer[0]-}
    if [[ $current == '=' ]]; then
        current=''
    fi
    for word in "${answer[@]:1}"; do
        word=${word%%$'\\t'*}
        # Bash splits at an equals sign: what is before it is there already.
        if [[ ${COMP_WORDS[COMP_CWORD]} == '=' || ${COMP_WORDS[COMP_CWORD - 1]-} == '=' ]]; then
            word=${word#--*=}
        fi
        COMPREPLY+=("$word")
    done
    case $kind in
        files)
            compopt -o filenames 2>/dev/null
            mapfile -t answer < <(compgen -f -- "$current")
            COMPREPLY+=("${answer[@]}")
            ;;
        folders)
            compopt -o filenames 2>/dev/null
            mapfile -t answer < <(compgen -d -- "$current")
            COMPREPLY+=("${answer[@]}")
            ;;
    esac
}
complete -F _ota ota
"""

ZSH = """\
#compdef ota
# zsh completion of ota. To have it: eval "$(scripts/ota completion zsh)", in ~/.zshrc behind compinit with
# the whole path.
_ota() {
    local program=${words[1]/#\\~/$HOME} kind line
    local -a answer choices
    answer=("${(@f)$("$program" completion --words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    kind=${answer[1]}
    for line in "${(@)answer[2,-1]}"; do
        choices+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}")
    done
    (( ${#choices} )) && _describe -V 'ota' choices
    case $kind in
        files) compset -P '*='; _files ;;
        folders) compset -P '*='; _files -/ ;;
    esac
}
compdef _ota ota
"""

FISH = """\
# fish completion of ota. To have it: scripts/ota completion fish > ~/.config/fish/completions/ota.fish
function __ota_complete
    set -l words (commandline -opc)
    set -l program (string replace -r '^~' $HOME -- $words[1])
    set -l current (commandline -ct)
    set -l answer ($program completion --words $words[2..-1] "$current" 2>/dev/null)
    for line in $answer[2..-1]
        echo -- $line
    end
    set -l start (string replace -r '^--[^=]*=' '' -- "$current")
    switch "$answer[1]"
        case files
            __fish_complete_path "$start"
        case folders
            __fish_complete_directories "$start" ''
    end
end
complete -c ota -f -a '(__ota_complete)'
"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
