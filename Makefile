PYTHON ?= python3
# The torch to install, for example TORCH="torch==2.13.0".
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
# A process for every core; the tests of a file share what they set up.
IN_PARALLEL := --numprocesses auto --dist loadfile

.PHONY: demo app tour space web web-serve test test-slow conformance quality embedded-model embedded-model-controls

demo: $(VENV)/.demo
	$(BIN)/python demo/segment_photo.py

app: $(VENV)/.app
	$(BIN)/python demo/app.py

# Executes the notebook and keeps its outputs in it.
tour: $(VENV)/.notebook
	$(BIN)/jupyter-execute --inplace demo/tour.ipynb

# The demo as a Space of the Hub, with the library beside it.
SPACE := build/space

space:
	rm -rf $(SPACE)
	mkdir -p $(SPACE)
	cp -r demo/app.py demo/catseg_app demo/examples demo/scene.png demo/README.md demo/requirements.txt src/catseg_hf $(SPACE)
	find $(SPACE) -name __pycache__ -prune -exec rm -r {} +

# The page of demo/web, which segments in the browser: a static Space.
WEB := build/web

web: $(VENV)/.export
	rm -rf $(WEB) $(WEB)-model $(WEB)-packages
	mkdir -p $(WEB)-packages
	cp demo/web/package.json demo/web/package-lock.json $(WEB)-packages
	cd $(WEB)-packages && npm ci --ignore-scripts --no-audit --no-fund
	$(BIN)/catseg-hf export --model $(SHIPPED) --format onnx --output $(WEB)-model
	$(BIN)/python demo/build_web.py --model $(WEB)-model --packages $(WEB)-packages/node_modules --output $(WEB) \
		--title "CAT-Seg for drawn scenes of emoji, the small model that comes with catseg_hf"

web-serve:
	$(BIN)/python demo/serve_web.py $(WEB)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest $(IN_PARALLEL) -m slow

# transformers' own common tests, from the source distribution of the release that is installed.
conformance: $(VENV)/.test
	$(BIN)/python -m pytest tests/conformance --quiet --disable-warnings

# Random and damaged input for everything that takes a user's, and many calls of one pipeline.
INPUTS ?= 10000
IMAGES ?= 2000

fuzz: $(VENV)/.test
	PYTHONPATH=tests:training $(BIN)/python tests/robustness/fuzz.py --inputs $(INPUTS)

soak: $(VENV)/.test
	$(BIN)/python tests/robustness/soak.py --images $(IMAGES)

quality: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Trains the model that is shipped, from nothing. A run that was stopped goes on when this is called again.
# On a GPU: make embedded-model PROCESSES=1 WORKERS=12 PRECISION=no. PROCESSES is 1, 2, 4 or 8: they share batches of 8.
WORLD := embedded-model
SHIPPED := src/catseg_hf/embedded_model
PROCESSES ?= 2
WORKERS ?= 1
PRECISION ?= $(if $(shell grep -so -m1 avx512_bf16 /proc/cpuinfo),bf16,no)
LAUNCH := OMP_NUM_THREADS=1 $(BIN)/python -m torch.distributed.run --nproc_per_node $(PROCESSES)
DRAW := $(BIN)/python training/emoji_world.py
PRETRAIN := $(LAUNCH) training/pretrain_clip.py --dataloader_num_workers $(WORKERS) \
	--mixed_precision $(PRECISION)
EVALUATE := $(BIN)/python training/evaluate_world.py --json $(WORLD)/results.json
FINE_TUNE = $(LAUNCH) training/train.py --config_overrides training/catseg_training/world/catseg.json \
	--prior_probability 0.05 --dataset_name $(WORLD)/scenes --vocabulary $(WORLD)/scenes/classes.json \
	--training_vocabulary $(WORLD)/scenes/seen.json --classes_per_step 20 --crop_size 128 --no-color_jitter \
	--learning_rate 2e-3 --clip_lr_multiplier 0.05 --per_device_train_batch_size $$((8 / $(PROCESSES))) \
	--max_train_steps 2000 --num_warmup_steps 50 --no-gradient_checkpointing --skip_evaluation --checkpointing_steps 200 \
	--checkpoints_total_limit 1 --resume_from_checkpoint latest --dataloader_num_workers $(WORKERS) \
	--output_dir $(@D)

embedded-model: $(WORLD)/catseg-1/model.safetensors
	$(BIN)/python training/ship_world_model.py --output $(SHIPPED) --model $(WORLD)/catseg-1
	$(EVALUATE) --name catseg --scenes $(WORLD)/scenes --model $(SHIPPED)
	$(EVALUATE) --name clip --scenes $(WORLD)/scenes --clip $(WORLD)/clip
	$(BIN)/python training/ship_world_model.py --output $(SHIPPED) --results $(WORLD)/results.json

# The rows of the card that say what each stage is worth, and how far the seed, the arithmetic and the style matter.
embedded-model-controls: $(addprefix $(WORLD)/,$(addsuffix /model.safetensors,catseg-2 catseg-3 plain-clip without-pretraining)) \
		$(addsuffix /images/test,$(WORLD)/other-scenes $(WORLD)/fluent)
	$(EVALUATE) --name catseg_seed_2 --scenes $(WORLD)/scenes --model $(WORLD)/catseg-2
	$(EVALUATE) --name catseg_seed_3 --scenes $(WORLD)/scenes --model $(WORLD)/catseg-3
	$(EVALUATE) --name plain_clip --scenes $(WORLD)/scenes --clip $(WORLD)/plain-clip
	$(EVALUATE) --name catseg_without_pretraining --scenes $(WORLD)/scenes --model $(WORLD)/without-pretraining
	$(EVALUATE) --name other_scenes --scenes $(WORLD)/other-scenes --model $(SHIPPED)
	$(EVALUATE) --name sliding_window --scenes $(WORLD)/scenes --model $(SHIPPED) --all_words_only --sliding_window
	$(EVALUATE) --name guided --scenes $(WORLD)/scenes --model $(SHIPPED) --all_words_only --upsampling guided
	$(EVALUATE) --name bfloat16 --scenes $(WORLD)/scenes --model $(SHIPPED) --all_words_only --dtype bfloat16
	$(EVALUATE) --name compiled --scenes $(WORLD)/scenes --model $(SHIPPED) --all_words_only --compile
	$(EVALUATE) --name other_style --scenes $(WORLD)/fluent --model $(SHIPPED)
	$(BIN)/python training/ship_world_model.py --output $(SHIPPED) --results $(WORLD)/results.json

$(WORLD)/scenes/images/test: | $(VENV)/.training
	rm -rf $(WORLD)/scenes
	$(DRAW) --output $(WORLD)/scenes --num_scenes 8000 --seed 1001 --hide_unseen
	$(DRAW) --output $(WORLD)/scenes --num_scenes 200 --seed 1002 --split validation
	$(DRAW) --output $(WORLD)/scenes --num_scenes 500 --seed 1003 --split test

$(WORLD)/other-scenes/images/test: | $(VENV)/.training
	$(DRAW) --output $(WORLD)/other-scenes --num_scenes 500 --seed 1005 --split test

$(WORLD)/fluent/images/test: | $(VENV)/.training
	cd $(WORLD) && npm pack --silent @iconify-json/fluent-emoji-flat@1.2.6 && tar xzf iconify-json-*.tgz
	$(DRAW) --output $(WORLD)/fluent --num_scenes 500 --seed 1003 --split test --icons $(WORLD)/package

$(WORLD)/clip/model.safetensors: | $(VENV)/.training
	$(PRETRAIN) --output_dir $(@D)

$(WORLD)/plain-clip/model.safetensors: | $(VENV)/.training
	$(PRETRAIN) --output_dir $(@D) --patch_weight 0

$(WORLD)/random-clip/model.safetensors: | $(VENV)/.training
	$(PRETRAIN) --output_dir $(@D) --scenes 0

$(WORLD)/catseg-%/model.safetensors: $(WORLD)/clip/model.safetensors | $(WORLD)/scenes/images/test
	$(FINE_TUNE) --clip_model_name_or_path $(<D) --seed $*

$(WORLD)/without-pretraining/model.safetensors: $(WORLD)/random-clip/model.safetensors | $(WORLD)/scenes/images/test
	$(FINE_TUNE) --clip_model_name_or_path $(<D) --seed 1

$(VENV)/.%: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
