#!/usr/bin/env bash
# Installs Horovod into a Python that has TensorFlow: scripts/build_horovod.sh .venv/bin/python
#
# Horovod 0.28.1 is the last release, and its wheels do not exist for current TensorFlow versions, so it
# is built from PyPI's source package, for Gloo on the CPU, without MPI. The built wheel is kept in
# ${XDG_CACHE_HOME:-~/.cache}/revkeras/horovod; a second call takes it from there.
set -euo pipefail

VERSION=0.28.1
# What Horovod imports while it is built and while it runs.
REQUIREMENTS=("setuptools<81" wheel packaging cffi cloudpickle psutil pyyaml)

fail() {
    printf 'build_horovod.sh: %s\n' "$@" >&2
    exit 1
}

[ $# -eq 1 ] || fail "expected the Python to install into, received $# arguments." \
    "Example: scripts/build_horovod.sh .venv/bin/python"
python=$(command -v "$1") || fail "'$1' is not a program that runs."
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

pip() {
    "$python" -m pip --quiet --disable-pip-version-check "$@"
}

installed_version() {
    "$python" - "$VERSION" <<'PYTHON' 2>/dev/null
import sys
import horovod, horovod.tensorflow
from tensorflow.python.framework import op_def_registry
as_patched = op_def_registry.get("HorovodAllreduce").is_stateful
sys.exit(horovod.__version__ != sys.argv[1] or not as_patched)
PYTHON
}

target=$("$python" - <<'PYTHON' 2>/dev/null
import sysconfig
import tensorflow as tf
print(tf.__version__, sysconfig.get_config_var("SOABI"), tf.sysconfig.get_include())
PYTHON
) || fail "'$python' cannot import TensorFlow, which Horovod is built against." \
    "Install it first: $python -m pip install tensorflow-cpu"
read -r tensorflow abi include <<<"$target"

if installed_version; then
    echo "Horovod $VERSION is installed for $python."
    exit 0
fi

pip install "${REQUIREMENTS[@]}"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/revkeras/horovod/horovod-$VERSION-stateful-tensorflow-$tensorflow-$abi
mkdir -p "$cache"
wheel=$(find "$cache" -name '*.whl' | head -n 1)

if [ -z "$wheel" ]; then
    missing=()
    command -v "${CXX:-g++}" >/dev/null || missing+=("a C++ compiler (Debian: apt-get install g++)")
    command -v "${HOROVOD_CMAKE:-cmake}" >/dev/null || missing+=("CMake 3.13 or newer (Debian: apt-get install cmake)")
    command -v make >/dev/null || missing+=("make (Debian: apt-get install make)")
    [ ${#missing[@]} -eq 0 ] || fail "Horovod has to be compiled, and this is missing:" "${missing[@]/#/  }"

    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    echo "Building Horovod $VERSION against TensorFlow $tensorflow; this takes minutes, once a machine."
    pip download --no-deps --no-binary :all: --no-build-isolation --dest "$work" "horovod==$VERSION"
    tar -xzf "$work/horovod-$VERSION.tar.gz" -C "$work"
    source=$work/horovod-$VERSION
    # Its XLA operations use an interface that TensorFlow no longer has.
    sed -i '/xla_mpi_ops\.cc/d' "$source/horovod/tensorflow/CMakeLists.txt"
    # TensorFlow takes operations that are not stateful for pure functions: it ran one on a constant
    # while it optimized the graph, and left one out whose result nobody read, on one worker of three.
    sed -i -E 's/^REGISTER_OP\("Horovod(Grouped)?(All(reduce|gather|toall)|Reducescatter|Broadcast)"\)$/&.SetIsStateful()/' \
        "$source/horovod/tensorflow/mpi_ops.cc"
    # TensorFlow's headers include these two as if they stood beside them. CMake 4 refuses the policies
    # of the sources that come with Horovod, and GCC 13 no longer includes <cstdint> for them.
    CPATH=$include/external/highwayhash:$include/external/farmhash_archive/src${CPATH:+:$CPATH} \
        CMAKE_POLICY_VERSION_MINIMUM=3.5 \
        CXXFLAGS="-include cstdint ${CXXFLAGS:-}" \
        MAKEFLAGS=${MAKEFLAGS:--j$(nproc)} \
        HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MXNET=1 \
        HOROVOD_WITH_GLOO=1 HOROVOD_WITHOUT_MPI=1 HOROVOD_CPU_OPERATIONS=GLOO \
        nice "$python" -m pip --disable-pip-version-check wheel --no-deps --no-build-isolation \
        --wheel-dir "$work/wheel" "$source" >"$work/log" 2>&1 ||
        { tail -n 40 "$work/log" >&2 && fail "the build failed; above are its last lines."; }
    mv "$work/wheel/"*.whl "$cache/"
    wheel=$(find "$cache" -name '*.whl' | head -n 1)
fi

pip install --no-deps --force-reinstall "$wheel"
installed_version || fail "Horovod was installed from $wheel, and cannot be imported:" \
    "$("$python" -c 'import horovod.tensorflow' 2>&1 | tail -n 3)"
echo "Horovod $VERSION is installed for $python."
