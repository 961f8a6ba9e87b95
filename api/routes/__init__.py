"""The routes, one file per thing that they are about."""

from api.routes import figure, health, jobs, models, results, saes

ROUTERS = (jobs.router, results.router, figure.router, models.router, saes.router, health.router)
