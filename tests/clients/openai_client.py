"""The official client of OpenAI: generations, streams, edits, errors."""

import base64
import io

import openai
from PIL import Image


def check(server):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    assert "flux-tiny" in [model.id for model in client.models.list().data]
    assert client.models.retrieve("flux-tiny").id == "flux-tiny"

    extra = {"seed": 5, "steps": 4}
    reference = server.drawn("a fox", "--seed", "5", "--steps", "4")
    for model in ["gpt-image-1", "dall-e-3", "flux-tiny"]:
        answer = client.images.generate(model=model, prompt="a fox", size="128x128", extra_body=extra)
        assert base64.b64decode(answer.data[0].b64_json) == reference, model
    answer = client.images.generate(model="gpt-image-1", prompt="a fox", n=2, extra_body=extra)
    assert len(answer.data) == 2

    events = list(client.images.generate(
        model="gpt-image-1", prompt="a fox", stream=True, partial_images=2,
        extra_body={"seed": 5, "steps": 12}))
    kinds = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed", kinds
    assert "image_generation.partial_image" in kinds, kinds
    last = base64.b64decode(events[-1].b64_json)
    assert last == server.drawn("a fox", "--seed", "5", "--steps", "12")

    start = server.folder / "start.png"
    start.write_bytes(reference)
    drawn = server.drawn("a dog", "--seed", "5", "--steps", "8", "-i", str(start), "--strength", "0.8")
    with start.open("rb") as image:
        answer = client.images.edit(
            model="gpt-image-1", image=image, prompt="a dog", size="128x128",
            extra_body={"strength": 0.8, "steps": 8, "seed": 5})
    edited = base64.b64decode(answer.data[0].b64_json)
    assert edited == drawn
    assert Image.open(io.BytesIO(edited)).size == (128, 128)

    # Transparent pixels of the mask are repainted, and all others stay as they are.
    mask = server.folder / "mask.png"
    picture = Image.open(start).convert("RGB")
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (64, 32, 128, 96))
    picture.putalpha(alpha)
    picture.save(mask)
    drawn = server.drawn("a dog", "--seed", "5", "--steps", "4", "-i", str(start), "--mask", str(mask))
    with start.open("rb") as image, mask.open("rb") as marks:
        answer = client.images.edit(
            model="gpt-image-1", image=image, mask=marks, prompt="a dog",
            extra_body={"steps": 4, "seed": 5})
    edited = base64.b64decode(answer.data[0].b64_json)
    assert edited == drawn
    before, after = (Image.open(io.BytesIO(data)).convert("RGB") for data in (reference, edited))
    kept = (0, 0, 64, 128)
    assert before.crop(kept).tobytes() == after.crop(kept).tobytes()
    assert before.tobytes() != after.tobytes()

    for kind, arguments, words in [
        (openai.NotFoundError, {"model": "nothing"}, "flux-tiny"),
        (openai.UnprocessableEntityError, {"model": "dall-e-3", "size": "100x100"}, "multiple of 16"),
    ]:
        try:
            client.images.generate(prompt="a fox", **arguments)
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{arguments} was not refused")
