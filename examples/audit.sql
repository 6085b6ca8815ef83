-- Which photographs does the core-set lean on, and what did it pass over?
-- curate sql store -m refined.parquet < examples/audit.sql
SELECT
    images.name,
    count(*) AS patches,
    count(refined.patch_id) AS chosen,
    round(100.0 * count(refined.patch_id) / count(*), 1) AS chosen_percent,
    round(100.0 * count(refined.patch_id) / sum(count(refined.patch_id)) OVER (), 1) AS percent_of_core_set,
    avg(scores.srcnn) AS mean_loss,
    corr(scores.srcnn, scores.sobel) AS loss_follows_texture
FROM scores
JOIN images USING (image_id)
LEFT JOIN refined USING (patch_id)
GROUP BY images.name
ORDER BY percent_of_core_set DESC, images.name
