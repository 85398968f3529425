-- Which operation a call opened: its state says what became of what was accepted. Operations go after a month.
alter table event add operation uuid;
