"""The trajectory planner: learned priors, goals and costs composed as experts."""
