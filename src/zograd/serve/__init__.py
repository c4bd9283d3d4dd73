"""`zograd serve`: a run of `AskTell` behind HTTP, whose answers are on disk before they are acknowledged.

Files: setup.py (what is searched), storage.py (SQLite), board.py (the run and its storage), guard.py (token, sizes,
rates), app.py (the interface), server.py (uvicorn), client.py (a client without dependencies), static/ (pages).
"""
