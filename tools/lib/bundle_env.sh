# shellcheck shell=sh
# env.sh - what every launcher of the bundle sources: where CUDA's own libraries are. The bundle
# brings all others, and its programs look beside themselves first whatever LD_LIBRARY_PATH says.
#
# cuBLASLt is looked for in LD_LIBRARY_PATH, the loader's cache, $CUDA_HOME and $CUDA_PATH,
# /usr/local/cuda*, and in the packages of Python (pip's nvidia-cublas) and conda. Source it yourself
# to run the programs in libexec/ by hand: bundle=FOLDER; . "$bundle/env.sh"
: "${bundle:?set bundle to the folder of the bundle}"
export TD_SOURCE_DIR="$bundle"

td_find_cublas() {
    library=libcublasLt.so.$1
    td_ifs=$IFS
    IFS=:
    for folder in ${LD_LIBRARY_PATH-}; do
        if [ -e "$folder/$library" ]; then
            IFS=$td_ifs
            return 0
        fi
    done
    IFS=$td_ifs
    if /sbin/ldconfig -p 2>/dev/null | grep -qF "$library "; then
        return 0
    fi
    for folder in "${CUDA_HOME-}/lib64" "${CUDA_PATH-}/lib64" /usr/local/cuda/lib64 \
        /usr/local/cuda-"$1"*/lib64 /usr/local/cuda*/lib64 /usr/local/cuda*/targets/x86_64-linux/lib \
        /opt/nvidia/hpc_sdk/Linux_x86_64/*/math_libs/"$1"*/lib64 /opt/cuda/lib64 "${CONDA_PREFIX-}/lib"; do
        if [ -e "$folder/$library" ]; then
            # Behind what is there: the folder may hold other libraries too.
            export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
            return 0
        fi
    done
    if command -v python3 >/dev/null 2>&1; then
        folder=$(python3 -c "
import glob, os, sys
for entry in sys.path:
    for path in sorted(glob.glob(os.path.join(entry, 'nvidia', '*', 'lib', '$library'))):
        print(os.path.dirname(path))
        sys.exit()" 2>/dev/null)
        if [ -n "$folder" ]; then
            export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
            return 0
        fi
    fi
    return 1
}

# The major version of CUDA that the programs were built with; empty: for CPU devices only.
td_cuda_major=@CUDA_MAJOR@
if [ -n "$td_cuda_major" ] && ! td_find_cublas "$td_cuda_major" && [ -e /dev/nvidiactl ]; then
    echo "tdgen: there is a GPU driver, but no libcublasLt.so.$td_cuda_major in the usual places; put the" \
        "folder of CUDA $td_cuda_major's libraries into LD_LIBRARY_PATH" >&2
fi
