#!/usr/bin/env bash
# The last commit's wheel in an environment of its own, with the lowest or the newest versions that pyproject.toml
# allows: every command on the run of the quickstart, then the fast tests against the installed package.
#
#   tests/clean_install.sh lowest|newest [ARGUMENTS OF PYTEST]     PYTHON=python3.10 takes another Python
#
# Works in build/clean-lowest or build/clean-newest (about 7 GB), which it empties first.
set -euo pipefail

versions=${1:?"say lowest or newest"}
[[ $versions == lowest || $versions == newest ]] || { echo "say lowest or newest, not $versions" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$here/build/clean-$versions
bin=$folder/venv/bin
rm -rf "$folder"
mkdir -p "$folder/source" "$folder/work"

echo "== environment"
git -C "$here" archive HEAD | tar -x -C "$folder/source"
"${PYTHON:-python3}" -m venv "$folder/venv"
"$bin/pip" wheel -q --no-deps --wheel-dir "$folder" "$folder/source"
touch "$folder/constraints.txt"
if [[ $versions == lowest ]]; then   # name>=version becomes name==version; what these need in turn is the newest they take
    sed '1,/^\[project\]/d' "$folder/source/pyproject.toml" | grep -oE '"[A-Za-z0-9_.-]+(\[[a-z]+\])?>=[0-9.]+' \
        | sed -E 's/^"//; s/\[[a-z]+\]//; s/>=/==/' >"$folder/constraints.txt"
fi
wheel=$(echo "$folder"/*.whl)
"$bin/pip" install -q -c "$folder/constraints.txt" "infoprune[dev] @ file://$wheel"
"$bin/pip" check
"$bin/pip" freeze >"$folder/installed.txt"

cd "$folder/work"
run=runs/quickstart/version_0
infoprune() { echo "== infoprune $*"; "$bin/infoprune" "$@" >"$folder/$1.log" 2>&1 || { cat "$folder/$1.log"; exit 1; }; }
infoprune --version
infoprune fit --config "$folder/source/configs/quickstart.yaml"
infoprune inspect --model $run
infoprune prune --model $run --macs 0.8 --out pruned
infoprune export --model pruned --out exported
infoprune benchmark --model $run --repeats 5
infoprune compare --model $run --criteria random l1 --budgets 0.5
infoprune plot --run $run
cat "$folder/export.log"

echo "== tests"
cd "$folder/source"
rm -r infoprune
ln -s "$("$bin/python" -c "import infoprune; print(*infoprune.__path__)")" infoprune
"$bin/python" -m pytest "${@:2}"
