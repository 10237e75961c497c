"""``tweezer completion``: the completion of commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_TWEEZER_COMPLETE"  # click's name for the variable with which the script calls `tweezer`
_LOAD_ZSH = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"  # a fresh ~/.zshrc has not done it


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> None:
    """Print a script that completes commands and options in a shell.

    Load it at the start of the shell:

    \b
    ~/.bashrc                   source <(tweezer completion bash)
    ~/.zshrc                    source <(tweezer completion zsh)
    ~/.config/fish/config.fish  tweezer completion fish | source
    """
    found = get_completion_class(shell)
    assert found is not None
    script = found(context.find_root().command, {}, "tweezer", _VARIABLE).source()
    if shell == "zsh":
        first, rest = script.split("\n", 1)  # the first line is for scripts in a folder of $fpath
        script = f"{first}\n{_LOAD_ZSH}\n{rest}"
    click.echo(script)
