#!/usr/bin/env python3
"""Do adapters that this library writes give the same numbers in PEFT?

    pip install transformers==5.23.0 peft==0.21.2 torch==2.13.0
    python3 tests/peft_reads_ours.py build/tests/io_real_adapters_test [FOLDER_OF_CASES]

The program loads each case of tests/real_adapters (or of another folder of that form), and writes it under the names of
its model. PEFT loads what was written beside the model, and its MoE blocks must give the recorded outputs. Of adapters
with names of transformers v4 that is what they were trained as, which PEFT itself does not serve from the file as it was.
Where the packages are not there, it says "skipped: …".
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

try:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM
except ImportError as error:
    print(f"skipped: PEFT does not read our adapters here ({error})")
    sys.exit(0)

TESTS = pathlib.Path(__file__).resolve().parent


def check(case, written):
    """The largest difference from the records, over what is allowed."""
    about = json.loads((case / "case.json").read_text())
    records = load_file(case / "expected.safetensors")
    which = "output_as_trained" if about["expect"] == "load as trained" else "output"
    model = AutoModelForCausalLM.from_pretrained(case / "base", dtype=torch.float32)
    base = dict(model.named_modules())
    model = PeftModel.from_pretrained(model, written).eval()
    modules = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    worst = 0.0
    for layer in range(about["layers"]):
        names = [about[key].replace("#", str(layer)) for key in ("block_in_adapter", "block_in_base")]
        names.append(names[0].replace("block_sparse_moe", "mlp"))
        block = modules[next(name for name in names if name in base)]
        with torch.no_grad():
            got = block(records[f"layers.{layer}.adapted.input"][None])
        got = (got[0] if isinstance(got, tuple) else got).reshape(-1, records[f"layers.{layer}.adapted.input"].shape[1])
        expected = records[f"layers.{layer}.adapted.{which}"]
        worst = max(worst, float((got - expected).abs().max() / (1e-5 * expected.abs().max())))
    return worst


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    cases = pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else TESTS / "real_adapters"
    failed = passed = 0
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ, MOE_ADAPTERS_DIR=str(cases), MOE_WRITE_ADAPTERS_TO=folder)
        subprocess.run([program, "--gtest_brief=1", "--gtest_filter=Folders/*"], env=environment, cwd=TESTS.parent, check=True)
        for written in sorted(pathlib.Path(folder).iterdir()):
            if not (cases / written.name).exists():
                continue
            try:
                worst = check(cases / written.name, written)
            except Exception as error:  # of PEFT's many: the case has failed, others go on
                print(f"{written.name}: {type(error).__name__}: {error}")
                failed += 1
                continue
            print(f"{written.name}: {worst:.2g} of what is allowed")
            failed, passed = failed + (not worst <= 1), passed + (worst <= 1)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
