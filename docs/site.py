"""Lays the site out as the repository is, so that the links of the pages lead somewhere in both.

A hook of MkDocs, which otherwise knows the files below ``docs`` alone; see mkdocs.yml.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# What pages link to outside of docs.
OUTSIDE = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "datasets/README.md"),
    *("configs/**/*.yaml", "offseg_d2/modeling/offset_learning.py"),
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The files of the theme as they are, the pages by their paths in the repository."""
    root = Path(config.config_file_path).parent
    paths = [path for pattern in OUTSIDE for path in sorted(root.glob(pattern))]
    theme = []
    for file in files:
        if file.src_dir != config.docs_dir:
            theme.append(file)
        elif not file.src_uri.endswith(".py"):
            paths.append(Path(config.docs_dir, file.src_uri))
    for path in paths:
        name = path.relative_to(root).as_posix()
        theme.append(File.generated(config, name, abs_src_path=str(path)))
    return Files(theme)
