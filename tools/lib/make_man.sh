#!/usr/bin/env bash
# make_man.sh TDGEN FOLDER - tdgen(1) and tdgen.ini(5) of what the program says: --help, the commands' own --help, --keys.
set -euo pipefail
tdgen=${1:?the program}
out=${2:?the folder}
mkdir -p "$out"
version=$("$tdgen" --version | sed -n 's/^tdgen \([^ ]*\) .*/\1/p')
# Preformatted text: backslashes, and lines that begin as a request does.
verbatim() { sed 's/\\/\\e/g; s/^\([.'"'"']\)/\\\&\1/; s/-/\\-/g'; }
block() {
    printf '.nf\n'
    verbatim
    printf '.fi\n'
}
{
    printf '.TH TDGEN 1 "" "tdgen %s" "User Commands"\n' "$version"
    printf '.SH NAME\ntdgen \\- teacher logits for knowledge distillation of language models\n'
    printf '.SH SYNOPSIS\n.B tdgen\n[\\-c] run.ini [section.key=value ...] [options]\n.br\n.B tdgen\n.I COMMAND\n[...]\n'
    printf '.SH DESCRIPTION\n'
    "$tdgen" --help | block
    printf '.SH COMMANDS\n'
    for command in devices inspect status verify merge tokenize; do
        printf '.SS tdgen %s\n' "$command"
        "$tdgen" "$command" --help | block
    done
    printf '.SH SEE ALSO\n.BR tdgen.ini (5)\n'
} >"$out/tdgen.1"
{
    printf '.TH TDGEN.INI 5 "" "tdgen %s" "File Formats"\n' "$version"
    printf '.SH NAME\ntdgen.ini \\- configuration of a run of tdgen\n'
    printf '.SH DESCRIPTION\nAn INI file of the sections below. Comments begin with ; or #, behind a value with " ;". '
    printf 'Each setting may be given on the command line as section.key=value, which wins.\n'
    printf '.SH SETTINGS\n'
    "$tdgen" --keys | block
    printf '.SH SEE ALSO\n.BR tdgen (1)\n'
} >"$out/tdgen.ini.5"
