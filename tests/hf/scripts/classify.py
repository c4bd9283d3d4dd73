"""Fine-tune a classifier of texts, as scripts for transformers do; nothing in it knows zograd."""

import json
from dataclasses import dataclass, field

import datasets
import numpy as np
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)


@dataclass
class Arguments:
    model_name_or_path: str
    train_file: str = field(metadata={"help": "CSV with the columns text and label."})
    validation_file: str
    cache_dir: str
    max_seq_length: int = 32
    resume: bool = False


def main() -> None:
    given, training_args = HfArgumentParser((Arguments, TrainingArguments)).parse_args_into_dataclasses()
    files = {"train": given.train_file, "validation": given.validation_file}
    raw = datasets.load_dataset("csv", data_files=files, cache_dir=given.cache_dir)
    labels = sorted(set(raw["train"]["label"]))

    tokenizer = AutoTokenizer.from_pretrained(given.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(given.model_name_or_path, num_labels=len(labels))

    def preprocess(examples):
        found = tokenizer(examples["text"], truncation=True, max_length=given.max_seq_length)
        found["label"] = [labels.index(label) for label in examples["label"]]
        return found

    data = raw.map(preprocess, batched=True, remove_columns=["text"])

    def compute_metrics(prediction):
        hits = np.argmax(prediction.predictions, axis=1) == prediction.label_ids
        return {"accuracy": float(hits.mean())}

    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=compute_metrics,
    )
    trainer.train(resume_from_checkpoint=given.resume)
    trainer.save_model()
    print(json.dumps(trainer.evaluate()))


if __name__ == "__main__":
    main()
