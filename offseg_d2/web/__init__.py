"""A page in the browser for trained models: ``offseg web`` or ``python -m offseg_d2.web``.

Only :mod:`.page` and the start of the server in :mod:`.app` need gradio
(``pip install 'offseg_d2[web]'``). ``options`` reads the command line, ``uploads`` reads files
within limits, ``results`` runs the models and draws, ``guard`` refuses requests of other sites.
"""
