# bash completion for tdgen: commands, options, settings (as section.key=) and files.
# shellcheck shell=bash
_tdgen() {
    local cur=${COMP_WORDS[COMP_CWORD]} program=${COMP_WORDS[0]}
    # readline splits words at "="; a value is a path.
    if [[ $cur == = || ${COMP_WORDS[COMP_CWORD - 1]} == = ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "${cur#=}")
        return
    fi
    if ((COMP_CWORD == 1)); then
        mapfile -t COMPREPLY < <(compgen -W "devices inspect status verify merge prepare export logits plot tokenize -c --help --version --keys" \
            -- "$cur")
        mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -X '!*.ini' -- "$cur")
        return
    fi
    case ${COMP_WORDS[1]} in
    devices | inspect | status | verify | merge | tokenize)
        if [[ $cur == -* ]]; then
            mapfile -t COMPREPLY < <(compgen -W "$("$program" "${COMP_WORDS[1]}" --help 2>/dev/null | grep -oE -- '--[a-z-]+' | sort -u)" \
                -- "$cur")
            return
        fi
        ;;
    prepare | export | logits | plot) ;;
    *)
        if [[ $cur == -* ]]; then
            mapfile -t COMPREPLY < <(compgen -W "$("$program" --help 2>/dev/null | grep -oE -- '^  --[a-z-]+' | tr -d ' ' | sort -u)" \
                -- "$cur")
            return
        fi
        if [[ -n $cur && $cur != */* ]]; then
            mapfile -t COMPREPLY < <(compgen -W "$("$program" --keys 2>/dev/null | sed -n 's/^  \([a-z]*\.[a-z_0-9]*\) (.*/\1=/p')" -- "$cur")
            if ((${#COMPREPLY[@]})); then
                compopt -o nospace
                return
            fi
        fi
        ;;
    esac
    mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    compopt -o filenames
}
complete -F _tdgen tdgen
