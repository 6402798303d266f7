"""Makes the pages of the documentation that follow from the code; `mkdocs.yml` names the rest."""
