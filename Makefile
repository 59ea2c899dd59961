PYTHON ?= python3
# The torch to install, for example TORCH="torch==2.13.0".
TORCH ?= torch
VENV := .venv
BIN := $(VENV)/bin
# A process for every core; the tests of a file share what they set up.
IN_PARALLEL := --numprocesses auto --dist loadfile

.PHONY: demo app space test test-slow quality embedded-model

demo: $(VENV)/.demo
	$(BIN)/python demo/segment_photo.py

app: $(VENV)/.app
	$(BIN)/python demo/app.py

# The demo as a Space of the Hub, with the library beside it.
SPACE := build/space

space:
	rm -rf $(SPACE)
	mkdir -p $(SPACE)
	cp -r demo/app.py demo/catseg_app demo/examples demo/scene.png demo/README.md demo/requirements.txt src/catseg_hf $(SPACE)
	find $(SPACE) -name __pycache__ -prune -exec rm -r {} +

test: $(VENV)/.test
	$(BIN)/python -m pytest $(IN_PARALLEL)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest $(IN_PARALLEL) -m slow

quality: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Trains the model that is shipped, from nothing. A run that was stopped goes on when this is called again.
WORLD := embedded-model
TWO_PROCESSES := $(BIN)/python -m torch.distributed.run --nproc_per_node 2

embedded-model: $(WORLD)/results.json
	$(BIN)/python training/ship_world_model.py --model $(WORLD)/catseg --results $< --output src/catseg_hf/embedded_model

$(WORLD)/scenes/images/test: | $(VENV)/.training
	rm -rf $(WORLD)/scenes
	$(BIN)/python training/emoji_world.py --output $(WORLD)/scenes --num_scenes 4000 --seed 1001 --hide_unseen
	$(BIN)/python training/emoji_world.py --output $(WORLD)/scenes --num_scenes 200 --seed 1002 --split validation
	$(BIN)/python training/emoji_world.py --output $(WORLD)/scenes --num_scenes 500 --seed 1003 --split test

$(WORLD)/clip/model.safetensors: | $(VENV)/.training
	OMP_NUM_THREADS=1 $(TWO_PROCESSES) training/pretrain_clip.py --output_dir $(WORLD)/clip

$(WORLD)/catseg/model.safetensors: $(WORLD)/clip/model.safetensors | $(WORLD)/scenes/images/test
	OMP_NUM_THREADS=1 $(TWO_PROCESSES) training/train.py --clip_model_name_or_path $(WORLD)/clip \
		--config_overrides training/catseg_training/world/catseg.json --prior_probability 0.05 \
		--dataset_name $(WORLD)/scenes --vocabulary $(WORLD)/scenes/classes.json \
		--training_vocabulary $(WORLD)/scenes/seen.json --classes_per_step 20 --crop_size 128 --no-color_jitter \
		--learning_rate 2e-3 --clip_lr_multiplier 0.05 --per_device_train_batch_size 4 --max_train_steps 240 \
		--num_warmup_steps 20 --skip_evaluation --checkpointing_steps 60 --checkpoints_total_limit 1 --seed 1 \
		--resume_from_checkpoint latest --output_dir $(WORLD)/catseg

$(WORLD)/results.json: $(WORLD)/catseg/model.safetensors
	$(BIN)/python training/evaluate_world.py --scenes $(WORLD)/scenes --split test --clip $(WORLD)/clip \
		--model $(WORLD)/catseg --json $@

$(VENV)/.%: setup.cfg pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@
