"""What the pipeline takes of `e2e_tts.modeling.abbreviations`.

In the folder of a checkpoint, where all code lies side by side and runs without this package, that file itself has this
one's place: `TextToSpeechPipeline.save_pretrained` sees to it.
"""

from e2e_tts.modeling.abbreviations import sentence_goes_on

__all__ = ["sentence_goes_on"]
