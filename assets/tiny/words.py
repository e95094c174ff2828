"""words.txt: every word of the captions that train_flux.py makes, one a line. The program lists the words of a prompt that are not among them.
Usage: python words.py, next to manifest.json"""
import json

COLOURS = ('white', 'black', 'red', 'green', 'blue', 'yellow', 'orange', 'pink', 'purple')  # NAMES of train_flux.py
words = {'a', 'style', 'in', 'on', 'background', '3D', 'flat', 'classic', *COLOURS}
for r in json.load(open('manifest.json')):
    if r['core'] and r['group'] in ('animals & nature', 'food & drink'): words |= set(r['label'].lower().split())
open('words.txt', 'w').write('\n'.join(sorted(words)) + '\n')
