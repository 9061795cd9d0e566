#!/usr/bin/env bash
# The command lines of the old parallel script, over tdgen.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
self=${0##*/}

usage() {
    cat <<END
usage: $self [gpus_per_model] [gpu_list] [overrides...] [-c FILE] [--dry-run] [--quiet | --verbose]

Keeps the command lines of the old script that started one Python process per group of GPUs. Here
one tdgen process drives all groups; it takes work for the fast ones as they ask for it, and a rerun
of the same command resumes.

  gpus_per_model  GPUs that hold one copy of the model, or auto (the groups with the highest predicted rate)
  gpu_list        such as "0,1,2,3"; also UUIDs (GPU-8f2e), PCI ids (65:00.0), auto, cpu, cpu*N, as
                  tdgen devices prints them. Without it every GPU is used
  overrides       section.key=value as tdgen takes them (tdgen --keys lists them). Old names:
                  distillation.dataset.max_samples=10, worker_id=0, total_workers=6 and their like
                  are translated; those without a counterpart are refused with what to use instead
  -c FILE         the configuration; else \$TDGEN_CONFIG, else conf/run.ini of this repository

Environment: TDGEN is the program (else build/release, build/quickstart, then PATH). The numbers in
gpu_list are those of the machine, as nvidia-smi -L shows them. CUDA_VISIBLE_DEVICES, which would
renumber them, is not read: name the GPUs in gpu_list.

  $self 4 "0,1,2,3,4,5,6,7"                                   two copies of 4 GPUs each
  $self 2 "0,1,2,3" distillation.dataset.max_samples=10       a trial of ten rows
  $self 1 --dry-run                                           what would be done on this machine
END
}

die() {
    printf '%s: %s\n' "$self" "$1" >&2
    exit 2
}

# What the old names became.
declare -A renamed=(
    [worker_id]=run.worker_id
    [total_workers]=run.total_workers
    [seed]=run.seed
    [max_samples]=data.max_samples
    [output_dir]=output.dir
    [distillation.output_dir]=output.dir
    [distillation.seed]=run.seed
    [distillation.top_k]=capture.top_k
    [distillation.logits.top_k]=capture.top_k
    [distillation.dataset.path]=data.path
    [distillation.dataset.max_samples]=data.max_samples
    [distillation.dataset.max_length]=data.max_length
    [distillation.dataset.max_seq_length]=data.max_length
    [distillation.dataset.text_field]=data.text_field
    [distillation.dataset.text_column]=data.text_field
    [distillation.teacher.path]=model.path
    [distillation.teacher.model_path]=model.path
    [distillation.teacher.dtype]=model.compute
    [distillation.teacher.torch_dtype]=model.compute
    [teacher.path]=model.path
    [teacher.model_path]=model.path
    [model_path]=model.path
)

# What has no counterpart, and what to do instead.
declare -A gone=(
    [batch_size]="run.batch_tokens counts tokens, not samples; it changes speed, never results"
    [distillation.batch_size]="run.batch_tokens counts tokens, not samples; it changes speed, never results"
    [distillation.dataset.batch_size]="run.batch_tokens counts tokens, not samples; it changes speed, never results"
    [distillation.dataset.name]="data.path=PATH takes local JSONL, text or safetensors files; save the dataset to some first"
    [distillation.dataset.split]="data.path=PATH takes local files; save the split to some first"
    [distillation.dataset.num_workers]="nothing has to be said: reading and tokenising overlap with the computation"
    [distillation.temperature]="capture.temperatures=T1,T2 records what makes re-tempering exact; the record itself is at T=1"
    [distillation.teacher.device_map]="the first argument (gpus_per_model) and the second (gpu_list)"
    [device_map]="the first argument (gpus_per_model) and the second (gpu_list)"
    [gpus]="the second argument (gpu_list), or devices.gpus=LIST"
    [gpus_per_model]="the first argument, or devices.gpus_per_model=N"
    [CUDA_VISIBLE_DEVICES]="the second argument (gpu_list)"
)

# Prints the tdgen form of one override.
translate() {
    local argument=$1 name=${1%%=*} value=${1#*=} new
    case $name in
    model.* | data.* | devices.* | capture.* | output.* | run.*)
        printf '%s' "$argument"
        return
        ;;
    esac
    if [[ -n ${gone[$name]-} ]]; then
        die "'$argument' is an override of the old script; use instead: ${gone[$name]}"
    fi
    new=${renamed[$name]-}
    if [[ -z $new ]]; then
        die "unknown override '$argument'; new names are section.key=value, see tdgen --keys and conf/run.ini"
    fi
    case $new=$value in
    data.max_samples=null | data.max_samples=None | data.max_samples=-1) value=0 ;;
    model.compute=*float32) value=f32 ;;
    model.compute=*bfloat16) value=bf16 ;;
    model.compute=*float16) value=f16 ;;
    esac
    printf '%s=%s' "$new" "$value"
}

config=${TDGEN_CONFIG:-$root/conf/run.ini}
config_given=${TDGEN_CONFIG:+yes}
gpus_per_model=
gpu_list=
names_devices=false
quiet=false
options=()
overrides=()
while (($# > 0)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    -c)
        (($# >= 2)) || die "-c needs the path of a configuration file"
        config=$2
        config_given=yes
        shift
        ;;
    --dry-run | --verbose) options+=("$1") ;;
    --quiet)
        quiet=true
        options+=("$1")
        ;;
    -*) die "unknown option '$1' (see $self --help)" ;;
    *=*)
        override=$(translate "$1")
        case $override in devices.gpus=* | devices.groups=*) names_devices=true ;; esac
        overrides+=("$override")
        ;;
    *)
        if [[ -z $gpus_per_model ]]; then
            [[ $1 =~ ^([1-9][0-9]{0,3}|auto)$ ]] ||
                die "gpus_per_model is '$1'; expected a number of at least 1, or auto (see $self --help)"
            gpus_per_model=$1
        elif [[ -z $gpu_list ]]; then
            name='((cuda:|cpu:)?[0-9]+|(GPU|MIG)-[0-9A-Za-z/-]+|[0-9A-Fa-f]+(:[0-9A-Fa-f]+)+(\.[0-7])?)'
            [[ $1 =~ ^($name(,$name)*|auto|cpu|cpu\*[0-9]+)$ ]] ||
                die "gpu_list is '$1'; expected GPUs such as 0,1,2,3, or auto, cpu, cpu*N"
            gpu_list=$1
        else
            die "unexpected argument '$1'; overrides have the form section.key=value"
        fi
        ;;
    esac
    shift
done

# The old scripts chose GPUs by CUDA_VISIBLE_DEVICES. Taking every GPU although it is set could run
# on GPUs that somebody else is using, so that is refused and not guessed.
if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    if [[ -z $gpu_list ]] && ! $names_devices; then
        die "CUDA_VISIBLE_DEVICES='$CUDA_VISIBLE_DEVICES' is set but not read here; name the GPUs: $self ${gpus_per_model:-1} \"${CUDA_VISIBLE_DEVICES:-cpu}\" ... (or unset it to use all)"
    fi
    unset CUDA_VISIBLE_DEVICES
fi

# Positional arguments come first: an explicit override of the same key wins.
positional=()
if [[ -n $gpus_per_model ]]; then
    positional+=("devices.gpus=${gpu_list:-auto}" "devices.gpus_per_model=$gpus_per_model")
fi

# The paths in conf/run.ini are relative to the repository.
[[ -n $config_given || $PWD -ef $root ]] ||
    die "outside of $root, name the configuration with -c FILE or TDGEN_CONFIG"
[[ -f $config ]] || die "there is no configuration file $config (-c FILE or TDGEN_CONFIG)"

if [[ -n ${TDGEN-} ]]; then
    tdgen=$TDGEN
    command -v "$tdgen" >/dev/null || die "TDGEN=$TDGEN is not a program"
else
    tdgen=
    for candidate in "$root/build/release/src/tdgen" "$root/build/quickstart/src/tdgen" tdgen; do
        if command -v "$candidate" >/dev/null; then
            tdgen=$candidate
            break
        fi
    done
    [[ -n $tdgen ]] || die "tdgen is not built yet: run tools/quickstart, or set TDGEN to the program"
fi

command=("$tdgen" -c "$config" "${positional[@]}" "${overrides[@]}" "${options[@]}")
$quiet || printf 'running: %s\n' "${command[*]@Q}" >&2
exec "${command[@]}"
