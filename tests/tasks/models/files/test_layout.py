"""What lies beside the weights of a model travels, whoever wrote it; weights, code and records do not."""

from tasks.models.files.layout import copy_companions


def test_everything_travels_but_weights_code_and_what_is_written_anew(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    (source / "additional_chat_templates").mkdir(parents=True), output.mkdir()
    travels = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "vocab.bpe",
        "preprocessor_config.json",
        "processor_config.json",
        "LICENSE",
        "something_new.json",
        "additional_chat_templates/tool_use.jinja",
    }
    stays = {
        "model.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "model.gguf",
        "modeling_x.py",
        "record.json",
        "README.md",
        ".env",
    }
    for name in travels | stays:
        (source / name).write_text("{}")
    copy_companions(source, output)
    assert {file.relative_to(output).as_posix() for file in output.rglob("*") if file.is_file()} == travels
