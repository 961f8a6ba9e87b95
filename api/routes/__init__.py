"""The routes, one file per thing that they are about."""

from api.routes import health, jobs, models, results, saes

ROUTERS = (jobs.router, results.router, models.router, saes.router, health.router)
