"""The inference client of Hugging Face: text to image, image to image, errors."""

import io

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image


def check(server):
    client = InferenceClient(model=server.url + "/hf/flux-tiny", token="none")
    image = client.text_to_image("a fox", num_inference_steps=4, seed=5)
    reference = server.drawn("a fox", "--seed", "5", "--steps", "4")
    assert image.tobytes() == Image.open(io.BytesIO(reference)).convert(image.mode).tobytes()

    start = server.folder / "start.png"
    start.write_bytes(reference)
    drawn = server.drawn("a dog", "--seed", "5", "--steps", "4", "-i", str(start),
                         "--strength", "0.5")
    image = client.image_to_image(
        reference, prompt="a dog", num_inference_steps=4, seed=5, strength=0.5)
    assert image.tobytes() == Image.open(io.BytesIO(drawn)).convert(image.mode).tobytes()
    for arguments, words in [({"width": 100}, "multiple of 16"), ({"model": server.url + "/hf/x"}, "flux-tiny")]:
        try:
            client.text_to_image("a fox", **arguments)
        except HfHubHTTPError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{arguments} was not refused")
