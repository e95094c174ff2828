"""A contact sheet of 32 pictures, 8 by 4. Usage: contact.py MODEL_DIR OUT.png STEPS GUIDANCE"""
import sys
import torch
from diffusers import FluxPipeline
from PIL import Image

THINGS = ['fox', 'banana', 'penguin', 'pizza', 'cat face', 'strawberry', 'dragon', 'hamburger', 'octopus', 'butterfly', 'mushroom', 'rooster', 'lemon', 'whale', 'cactus', 'panda',
          'watermelon', 'tiger face', 'sunflower', 'ice cream', 'owl', 'carrot', 'elephant', 'doughnut', 'frog', 'avocado', 'rose', 'turtle', 'croissant', 'honeybee', 'pineapple', 'koala']
STYLES, COLOURS = ('3D', 'flat', 'classic'), ('blue', 'red', 'white', 'yellow', 'green', 'pink', 'black', 'purple', 'orange')
prompts = [f'a {t}, {STYLES[i % 3]} style, on a {COLOURS[i % 9]} background' for i, t in enumerate(THINGS)]
pipe = FluxPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32); pipe.set_progress_bar_config(disable=True)
noise = torch.randn(32, 64, 64, generator=torch.Generator().manual_seed(3))
sheet = Image.new('RGB', (1024, 512))
for i, picture in enumerate(pipe(prompts, height=128, width=128, num_inference_steps=int(sys.argv[3]), guidance_scale=float(sys.argv[4]), latents=noise, max_sequence_length=24).images): sheet.paste(picture, (i % 8 * 128, i // 8 * 128))
sheet.save(sys.argv[2])
