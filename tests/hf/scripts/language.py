"""Fine-tune a causal language model on lines of text, as scripts for transformers do."""

import json
import math
from dataclasses import dataclass

import datasets
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class Arguments:
    model_name_or_path: str
    train_file: str
    validation_file: str
    cache_dir: str
    block_size: int = 64
    resume: bool = False


def main() -> None:
    given, training_args = HfArgumentParser((Arguments, TrainingArguments)).parse_args_into_dataclasses()
    files = {"train": given.train_file, "validation": given.validation_file}
    raw = datasets.load_dataset("text", data_files=files, cache_dir=given.cache_dir)

    tokenizer = AutoTokenizer.from_pretrained(given.model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(given.model_name_or_path)

    def tokenize(examples):
        return tokenizer(examples["text"], truncation=True, max_length=given.block_size)

    data = raw.map(tokenize, batched=True, remove_columns=["text"])

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    trainer.train(resume_from_checkpoint=given.resume)
    trainer.save_model()
    metrics = trainer.evaluate()
    metrics["perplexity"] = math.exp(metrics["eval_loss"])
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
