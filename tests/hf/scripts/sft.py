"""Supervised fine-tuning on prompts and completions, as scripts for TRL do."""

import json
from dataclasses import dataclass

import datasets
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer, TrlParser


@dataclass
class Arguments:
    model_name_or_path: str
    train_file: str
    validation_file: str
    cache_dir: str
    resume: bool = False


def main() -> None:
    given, training_args = TrlParser((Arguments, SFTConfig)).parse_args_and_config()
    files = {"train": given.train_file, "validation": given.validation_file}
    data = datasets.load_dataset("json", data_files=files, cache_dir=given.cache_dir)

    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model_name_or_path),
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=AutoTokenizer.from_pretrained(given.model_name_or_path),
    )
    trainer.train(resume_from_checkpoint=given.resume)
    trainer.save_model()
    print(json.dumps(trainer.evaluate()))


if __name__ == "__main__":
    main()
