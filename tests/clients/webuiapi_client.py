"""webuiapi, the client of AUTOMATIC1111 that reads the most of its answers."""

import io

import webuiapi
from PIL import Image


def check(server):
    api = webuiapi.WebUIApi(host=server.host, port=int(server.port))
    assert api.util_get_model_names() == ["flux-tiny"], api.util_get_model_names()
    assert api.util_get_current_model() == "flux-tiny"
    assert [sampler["name"] for sampler in api.get_samplers()] == ["Euler"]
    api.util_set_model("flux-tiny")

    drawn = api.txt2img(prompt="a fox", steps=4, seed=5, width=128, height=128)
    reference = server.drawn("a fox", "--seed", "5", "--steps", "4")
    pixels = Image.open(io.BytesIO(reference)).convert("RGB").tobytes()
    assert drawn.image.convert("RGB").tobytes() == pixels
    assert (drawn.info["seed"], drawn.info["steps"]) == (5, 4), drawn.info
    assert drawn.info["sd_model_name"]

    start = server.folder / "start.png"
    drawn.image.save(start)
    again = api.img2img(images=[drawn.image], prompt="a cat", steps=4, seed=7, width=128,
                        height=128, denoising_strength=0.5)
    reference = server.drawn("a cat", "--seed", "7", "--steps", "4", "-i", str(start),
                             "--strength", "0.5")
    pixels = Image.open(io.BytesIO(reference)).convert("RGB").tobytes()
    assert again.image.convert("RGB").tobytes() == pixels

    mask = server.folder / "mask.png"
    marks = Image.new("L", (128, 128), 0)
    marks.paste(255, (64, 32, 128, 96))
    marks.save(mask)
    common = ["a cat", "--seed", "7", "--steps", "4", "-i", str(start), "--mask", str(mask),
              "--strength", "0.75"]
    for arguments, options in [
        ({"inpaint_full_res": False, "mask_blur": 0}, ["--mask-blur", "0"]),
        ({"inpaint_full_res": True, "inpaint_full_res_padding": 16, "mask_blur": 2},
         ["--mask-blur", "2", "--mask-padding", "16", "--size", "128x128"]),
    ]:
        painted = api.img2img(images=[drawn.image], mask_image=marks, prompt="a cat", steps=4, seed=7,
                              width=128, height=128, denoising_strength=0.75, **arguments)
        reference = Image.open(io.BytesIO(server.drawn(*common, *options))).convert("RGB")
        assert painted.image.convert("RGB").tobytes() == reference.tobytes(), arguments
        kept = (0, 0, 50, 128)
        assert painted.image.convert("RGB").crop(kept).tobytes() == drawn.image.convert("RGB").crop(kept).tobytes()

    assert api.get_progress()["progress"] == 0
    api.interrupt()
    assert api.png_info(drawn.image).info.startswith("a fox")
