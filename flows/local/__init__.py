"""This machine and this user: processes, the login, the Prefect API that may be asked, a torn dvc.lock."""
