"""Registration with transformers' Auto classes, for the installed package and for copies of it in checkpoints."""

import transformers


def register(config_class: type, **classes: type) -> None:
    """Makes a configuration and its classes known: `register(VocoderConfig, AutoModel=VocoderModel)`.

    Every class carries its code into the checkpoints that it saves, under the first Auto class it is named with. The
    Auto classes themselves learn of them only from the installed package: a copy that runs from a checkpoint's folder
    must not take over, because another checkpoint may carry other code.
    """
    config_class.register_for_auto_class("AutoConfig")
    for name, cls in classes.items():
        if "_auto_class" not in vars(cls):
            cls.register_for_auto_class(name)
    if __name__.startswith("transformers_modules."):
        return
    transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    for name, cls in classes.items():
        getattr(transformers, name).register(config_class, cls, exist_ok=True)
