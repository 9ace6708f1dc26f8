"""A page in the browser for trained models: ``offseg-web`` or ``python -m offseg_d2.web``.

Only :mod:`.page` and :mod:`.server` need gradio (``pip install -e '.[web]'``). What the page
shows is made by the other modules, which know nothing of a browser: ``uploads`` reads files within
limits, ``workbench`` runs the models, ``pictures`` draws, ``legend`` writes the tables.
"""
