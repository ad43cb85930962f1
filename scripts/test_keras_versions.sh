#!/usr/bin/env bash
# Runs the tests that touch what the package borrows from Keras on each of the given versions, such
# as 3.10.0 or nightly, in .venv-keras-VERSION. Prints a line for each.
set -uo pipefail
cd "$(dirname "$0")/.."

TESTS=(
    tests/test_layering.py
    tests/test_structure.py
    tests/test_saving.py::test_keras_file_in_a_fresh_process
    tests/test_shared_layers.py::test_a_shared_layer_trains_as_one
    tests/test_shared_layers.py::test_functional_models_in_one_block_that_share_are_refused
    tests/test_fused_update.py::test_constraints
    tests/test_fused_update.py::test_shared_and_frozen_weights
    tests/test_fused_update.py::test_weight_decay_exclusions
    tests/convert/test_readers.py
    tests/convert/test_inlined_blocks.py
    tests/distribute/test_parameters.py
    tests/distribute/test_resume.py::test_any_stage_and_number_of_workers_goes_on
    tests/distribute/test_resume.py::test_saves_by_hand_and_by_the_callback_have_one_counter
)

install() {
    local venv=$1 keras="keras==$2" pip="$1/bin/python -m pip --quiet --disable-pip-version-check"
    test "$2" = nightly && keras=keras-nightly
    # TensorFlow brings a Keras of its own choice, which would hide the nightly.
    "${PYTHON:-python3}" -m venv "$venv" &&
        $pip install "$(grep ^tensorflow requirements-demo.txt)" \
            "$(grep ^pytest== requirements-dev.txt)" hypothesis &&
        $pip uninstall --yes keras &&
        $pip install --no-deps "$keras" &&
        touch "$venv/installed"
}

failed=0
for version in "$@"; do
    venv=.venv-keras-$version
    log=out/keras-$version.log
    mkdir -p out
    test -e "$venv/installed" || install "$venv" "$version" || { failed=1; continue; }
    PYTHONPATH=$PWD "$venv/bin/python" -m pytest "${TESTS[@]}" > "$log" 2>&1 || failed=1
    found=$("$venv/bin/python" -c 'import keras; print(keras.__version__)' 2> /dev/null)
    echo "Keras ${found:-$version}: $(tail -n 1 "$log") ($log)"
done
exit $failed
