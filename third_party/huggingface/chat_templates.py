"""Chat templates: text that is copied and never rendered.

The named ones are the public formats of these families, as Jinja templates.
"""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
import json
from typing import Any
from typing import NamedTuple

from merging import patterns
from third_party import problems
from third_party.huggingface import json_files
from third_party.huggingface import layout
from third_party.huggingface import tokenizer

FILE = 'chat_template.jinja'
OLD_FILE = 'chat_template.json'
_MAX_BYTES = 1_000_000


class Template(NamedTuple):
  """A named format.

  Attributes:
    text: The Jinja template.
    tokens: That it needs.
  """

  text: str
  tokens: tuple[str, ...]


NAMED: Mapping[str, Template] = {
  'chatml': Template(
    '{% for message in messages %}'
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
    "'<|im_end|>\\n' }}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    ('<|im_start|>', '<|im_end|>'),
  ),
  'alpaca': Template(
    '{% for message in messages %}'
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}"
    "{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}"
    '{% endif %}{% endfor %}'
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
    (),
  ),
  'llama3': Template(
    '{{ bos_token }}'
    '{% for message in messages %}'
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + "
    "message['content'] | trim + '<|eot_id|>' }}"
    '{% endfor %}'
    '{% if add_generation_prompt %}'
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'),
  ),
  'mistral': Template(
    "{% if messages and messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\\n\\n' %}"
    '{% set turns = messages[1:] %}'
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    '{{ bos_token }}'
    '{% for message in turns %}'
    "{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + message['content'] + "
    "' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}"
    '{% endif %}{% endfor %}',
    (),
  ),
  'exaone': Template(
    "{% if messages and messages[0]['role'] != 'system' %}"
    "{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
    '{% for message in messages %}'
    "{{ '[|' + message['role'] + '|]' + message['content'] }}"
    "{% if message['role'] != 'user' %}{{ '[|endofturn|]' }}{% endif %}"
    "{{ '\\n' }}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
    ('[|endofturn|]',),
  ),
}


def read(directory: layout.Directory) -> str | None:
  """Returns the chat template of a model, the default one if it has several.

  Args:
    directory: Of the model.

  Returns:
    The text, or `None`.

  Raises:
    problems.ProblemError: A file is not sound.
  """
  if FILE in directory.names:
    where = (directory.model, FILE)
    fd = json_files.open_file(directory.locate(FILE), where)
    try:
      with open(fd, 'rb') as file:
        content = file.read(_MAX_BYTES + 1)
      if len(content) > _MAX_BYTES:
        raise directory.refuse((FILE,), f'has more than {_MAX_BYTES} bytes')
      return content.decode()
    except UnicodeDecodeError as error:
      raise directory.refuse((FILE,), 'is not UTF-8') from error
    except OSError as error:
      raise json_files.unreadable(error, where) from error
  for name in (tokenizer.CONFIG, OLD_FILE):
    template = directory.load_json(name).get('chat_template')
    if isinstance(template, list):
      template = {
        each.get('name'): each.get('template')
        for each in template
        if isinstance(each, dict)
      }
    if isinstance(template, dict):
      template = template.get('default')
    if isinstance(template, str) and template:
      return template
  return None


def choose(wish: str, templates: Iterable[str | None]) -> Template | None:
  """Returns the template that a recipe asks for.

  Args:
    wish: `auto` for what most models have (of equally many, the first), the
      name of a format, or a Jinja template.
    templates: Of the models; asked for only by `auto`.

  Returns:
    The template; `None` if no model has one.

  Raises:
    problems.ProblemError: It is neither a name nor a template.

  Examples:
    >>> choose('auto', ['{{ a }}', None, '{{ b }}', '{{ b }} ']).text
    '{{ b }}'
  """
  if wish == 'auto':
    counts = Counter(each.strip() for each in templates if each)
    return Template(counts.most_common(1)[0][0], ()) if counts else None
  if wish in NAMED:
    return NAMED[wish]
  if '{' in wish:
    return Template(wish, ())
  raise problems.refuse(
    problems.Kind.CONFIG,
    ('chat_template',),
    f"expected 'auto', one of {patterns.listing(NAMED)} or a Jinja template, "
    f'got {wish!r}{patterns.suggest(wish, NAMED)}',
  )


def files(template: str, config: Mapping[str, Any] | None) -> dict[str, bytes]:
  """Returns the files that carry a template.

  Current libraries read its own file, older ones the tokenizer's config.

  Args:
    template: The text.
    config: The tokenizer's config, if there is one.

  Returns:
    By name.
  """
  found = {FILE: template.encode()}
  if config is not None:
    content = {**config, 'chat_template': template}
    text = json.dumps(content, ensure_ascii=False, indent=2) + '\n'
    found[tokenizer.CONFIG] = text.encode()
  return found
